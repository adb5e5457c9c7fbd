"""Look for faults in synonym trees: `python launchers/inspect_synonyms.py trees=FILE [actions=FILE] [embed=minilm]`."""

from ace_dist.cli import main

if __name__ == "__main__":
    raise SystemExit(main("inspect_synonyms"))
