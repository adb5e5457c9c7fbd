"""Check shards: `python launchers/verify_shards.py dataset=csv dataset.shards=DIR`."""

from ace_dist.cli import main

if __name__ == "__main__":
    raise SystemExit(main("verify_shards"))
