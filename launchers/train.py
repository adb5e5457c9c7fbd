"""Train and evaluate: `deepspeed launchers/train.py experiment=NAME key=value ...`."""

from ace_dist.cli import main

if __name__ == "__main__":
    raise SystemExit(main("train"))
