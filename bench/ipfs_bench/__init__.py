"""Measurements of volumes in IPFS, beside MinIO: `python -m bench.ipfs` (bench/README.md)."""
