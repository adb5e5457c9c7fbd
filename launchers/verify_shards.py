"""Check shards: `python launchers/verify_shards.py dataset=csv dataset.shards=DIR`."""

import sys

from ace_dist.cli import main

if __name__ == "__main__":
    sys.exit(main("verify_shards"))
