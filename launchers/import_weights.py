"""Bring others' weights in: `python launchers/import_weights.py source=FILE output=FILE.safetensors [tower=NAME]`."""

from ace_dist.cli import main

if __name__ == "__main__":
    raise SystemExit(main("import_weights"))
