"""Reports of runs, sweeps and grids: `python launchers/report.py [run|runs|sweep|grid] run=DIR ...`."""

import sys

from ace_dist.cli import main

if __name__ == "__main__":
    sys.exit(main("report"))
