"""Reports of runs, sweeps and grids: `python launchers/report.py [run|runs|sweep|grid] run=DIR ...`."""

from ace_dist.cli import main

if __name__ == "__main__":
    raise SystemExit(main("report"))
