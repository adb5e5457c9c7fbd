"""`python -m ace_dist`: which launcher does what, and where to begin."""

from __future__ import annotations

import ast

from ace_dist import __version__
from ace_dist.config import config_dir


def main() -> None:
    """Print the first commands and the first sentence of every launcher."""
    folder = config_dir().parent / "launchers"
    print(f"ace-dist {__version__}. It is used through its launchers, from the folder that holds launchers/:\n")
    for path in sorted(folder.glob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        print(f"  {path.stem:18} {docstring.splitlines()[0]}")
    if not folder.is_dir():
        print("  they are not part of the installed package: clone the repository that it came from")
    print(
        "\nBegin with the demo:    make demo\n"
        "or with your own CSV:   python launchers/build_synonyms.py actions=annotations.csv out=trees.json "
        "source=wordnet children=6\n"
        "Each one explains itself with --help; README.md has the steps in order."
    )


if __name__ == "__main__":
    main()
