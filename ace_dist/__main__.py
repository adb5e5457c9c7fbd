"""`python -m ace_dist NAME key=value ...`: any command; without a name, the list of commands."""

import sys

from ace_dist.cli import main

if __name__ == "__main__":
    sys.exit(main())
