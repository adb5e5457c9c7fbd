"""`python -m ace_dist NAME key=value ...`: any command, in this process; without a name, the list of commands."""

import sys

from ace_dist.cli import main

if __name__ == "__main__":
    sys.exit(main())
