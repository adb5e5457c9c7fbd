"""Build synonym trees: `python launchers/build_synonyms.py actions=FILE output=FILE source=wordnet children=6`."""

import sys

from ace_dist.cli import main

if __name__ == "__main__":
    sys.exit(main("build_synonyms"))
