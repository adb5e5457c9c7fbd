"""Export a finished run: `python launchers/export.py run=DIR output=DIR`."""

import sys

from ace_dist.cli import main

if __name__ == "__main__":
    sys.exit(main("export"))
