"""Check nodes, network, disk, shards and decoder before a long job, with the settings of the run itself."""

from ace_dist.cli import main

if __name__ == "__main__":
    raise SystemExit(main("preflight"))
