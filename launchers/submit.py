"""Submit any launcher as a job: `python launchers/submit.py cluster=slurm launcher=train experiment=NAME key=value`."""

from ace_dist.cli import main

if __name__ == "__main__":
    raise SystemExit(main("submit"))
