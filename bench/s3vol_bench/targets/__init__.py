"""What is measured: mounts of s3vol and of its peers, the local disk, and the endpoint without a file system."""
