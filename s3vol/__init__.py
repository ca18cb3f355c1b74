"""s3vol: a bucket as a POSIX file system, safe from the first day."""

__version__ = "0.1.0"
