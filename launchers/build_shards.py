"""Make shards: `python launchers/build_shards.py dataset=csv dataset.annotations=FILE dataset.shards=DIR`."""

from ace_dist.cli import main

if __name__ == "__main__":
    raise SystemExit(main("build_shards"))
