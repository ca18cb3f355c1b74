"""`python -m s3vol_plugin` is `s3vol-plugin`."""

import sys

from s3vol_plugin.daemon import main

if __name__ == "__main__":
    sys.exit(main())
