"""Certificates for servers on loopback, made by openssl: each has signed itself and is its own authority."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def certify(directory: Path) -> Path:
    """Put a key and a certificate where a `Minio(directory)` looks for them, so that it speaks https; the latter."""
    certs = directory / "certs"
    certs.mkdir(parents=True)
    return certificate(certs / "public.crt", certs / "private.key")


def certificate(path: Path, key: Path) -> Path:
    """Make a certificate for 127.0.0.1, good for a day."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.fail("no `openssl` to make a certificate with: run tools/bootstrap test")
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(path)], check=True, capture_output=True, timeout=60)
    return path
