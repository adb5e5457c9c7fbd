"""Build synonym trees: `python launchers/build_synonyms.py actions=FILE output=FILE source=wordnet children=6`.

With a language model: `source=model model=NAME domain="toy assembly" [base_url=URL]`, the key in OPENAI_API_KEY.
By hand: `manual=export trees=FILE sheet=FILE.csv`, edit, `manual=import trees=FILE sheet=FILE.csv output=FILE`.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from ace_dist.concepts import SynonymTrees
from ace_dist.config import run_launcher, typed_settings
from ace_dist.tools.synonyms import BuildConfig, build, export_sheet, import_sheet
from ace_dist.tools.synonyms.action_list import read_actions
from ace_dist.tools.synonyms.diagnostics import diagnose
from ace_dist.utils.errors import ConfigError

INCOMPLETE = 3  # exit status of a build that lacks nodes
SHOWN = 20  # missing nodes that are printed; the file names all of them


def main(argv: Sequence[str]) -> None:
    """Build, export or import; say what is missing and what looks wrong."""
    config = typed_settings(argv, BuildConfig)
    if config.manual is not None:
        by_hand(config)
        return
    result = build(config)
    if result is None:
        return
    for node, reason in list(result.missing.items())[:SHOWN]:
        print(f"missing: {node}: {reason}", file=sys.stderr)
    if result.missing:
        print(f"{result.path}: {len(result.missing)} nodes missing; the same command continues", file=sys.stderr)
        raise SystemExit(INCOMPLETE)
    listed = read_actions(config.actions)
    report(result.path, {action.verb for action in listed.shown_in("train") or listed.actions})


def by_hand(config: BuildConfig) -> None:
    """The round trip through a sheet."""
    if config.manual not in ("export", "import") or not (config.trees and config.sheet):
        raise ConfigError("manual=export|import needs trees=FILE.json and sheet=FILE.csv, import also output=FILE.json")
    if config.manual == "export":
        print(f"{config.sheet}: {export_sheet(Path(config.trees), Path(config.sheet))} rows")
        return
    if not config.output:
        raise ConfigError("manual=import needs output=FILE.json")
    changes = import_sheet(Path(config.sheet), Path(config.trees), Path(config.output), config.editor)
    print("\n".join(changes) or "no difference")
    report(Path(config.output))


def report(path: Path, seen: Collection[str] | None = None) -> None:
    """One line on the trees, and what the diagnostics warn of; `seen` are the verbs that train (default: all)."""
    trees = SynonymTrees.load(path)
    findings = diagnose(trees, seen)
    print(f"{path}: {len(trees.roots)} trees, {len(trees.verbs())} different verbs, {len(findings.warnings)} warnings")
    for warning in findings.warnings:
        print(f"warning: {warning}")


if __name__ == "__main__":
    run_launcher(main)
