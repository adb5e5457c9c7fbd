"""Evaluate a finished run again: `deepspeed launchers/evaluate.py run=DIR` (or `python` for one rank)."""

from ace_dist.cli import main

if __name__ == "__main__":
    raise SystemExit(main("evaluate"))
