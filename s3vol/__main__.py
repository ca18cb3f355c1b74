"""`python -m s3vol`: the command line without an installed script."""

import sys

from s3vol.cli import main

sys.exit(main())
