"""The Docker volume driver: it will start and watch `s3vol mount` processes, and imports nothing of them."""
