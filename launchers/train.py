"""Train and evaluate: `deepspeed launchers/train.py experiment=NAME key=value ...`."""

import sys

from ace_dist.cli import main

if __name__ == "__main__":
    sys.exit(main("train"))
