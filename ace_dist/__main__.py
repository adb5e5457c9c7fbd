"""`python -m ace_dist NAME key=value ...`: any command, in this process; without a name, the list of commands."""

import sys

from ace_dist.cli import main
from ace_dist.cluster.ranks import end_with_starter

if __name__ == "__main__":
    end_with_starter()
    sys.exit(main())
