"""`python -m ace_dist [LAUNCHER]`: which launcher does what, and how it is started."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Sequence
from pathlib import Path

from ace_dist import __version__
from ace_dist.config import config_dir, did_you_mean, run_launcher
from ace_dist.utils.errors import ConfigError


def main(argv: Sequence[str]) -> None:
    """Print the first commands and the first sentence of every launcher; given a name, how that one is started."""
    folder = config_dir().parent / "launchers"
    name = argv[0].removesuffix(".py") if argv else ""
    if name.lstrip("-") not in ("", "h", "help"):
        show_start(folder, name, argv[1:])
        return
    print(f"ace-dist {__version__}. It is used through its launchers, from the folder that holds launchers/:\n")
    for path in sorted(folder.glob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        print(f"  {path.stem:18} {docstring.splitlines()[0]}")
    if not folder.is_dir():
        print("  they are not part of the installed package: clone the repository that it came from")
    print(
        "\nBegin with the demo:    make demo\n"
        "or with your own CSV:   python launchers/build_synonyms.py actions=annotations.csv output=trees.json "
        "source=wordnet children=6\n"
        "Each one explains itself with --help; README.md has the steps in order."
    )


def show_start(folder: Path, name: str, settings: Sequence[str]) -> None:
    """The command of one launcher. Raises `ConfigError` with the nearest name for one that does not exist."""
    known = sorted(path.stem for path in folder.glob("*.py"))
    if name not in known:
        near = did_you_mean(name, known)
        raise ConfigError(f"there is no launcher {name!r} (`python -m ace_dist` lists them){near}")
    print(f"start it with: {shlex.join(['python', f'launchers/{name}.py', *(settings or ['--help'])])}")


if __name__ == "__main__":
    run_launcher(main)
