"""Make shards: `python launchers/build_shards.py dataset=csv dataset.annotations=FILE dataset.shards=DIR`."""

import sys

from ace_dist.cli import main

if __name__ == "__main__":
    sys.exit(main("build_shards"))
