"""``python -m hashgrid`` is the ``hashgrid`` command."""

import sys

from hashgrid.cli import main

if __name__ == "__main__":
    sys.exit(main())
