"""Bring others' weights in: `python launchers/import_weights.py source=FILE output=FILE.safetensors [tower=NAME]`."""

import sys

from ace_dist.cli import main

if __name__ == "__main__":
    sys.exit(main("import_weights"))
