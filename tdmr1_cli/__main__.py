"""`python -m tdmr1_cli`, the same as `tdmr1`."""

import sys

from tdmr1_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
