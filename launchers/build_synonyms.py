"""Build synonym trees: `python launchers/build_synonyms.py actions=FILE output=FILE source=wordnet children=6`."""

from ace_dist.cli import main

if __name__ == "__main__":
    raise SystemExit(main("build_synonyms"))
