"""`python bench/compare.py OLD NEW`: the same as `s3vol bench --compare OLD NEW`."""

from __future__ import annotations

import sys

from s3vol.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "--compare", *sys.argv[1:]]))
