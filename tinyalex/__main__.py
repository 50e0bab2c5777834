"""Command line: python -m tinyalex."""

import sys

from tinyalex.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
