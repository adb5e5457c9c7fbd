"""Look for faults in synonym trees: `python launchers/inspect_synonyms.py trees=FILE [actions=FILE] [embed=minilm]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ace_dist.concepts import SynonymTrees
from ace_dist.config import run_launcher, typed_settings
from ace_dist.tools.synonyms.action_list import read_actions
from ace_dist.tools.synonyms.diagnostics import diagnose, embedding_spread
from ace_dist.utils.errors import ConfigError


@dataclass
class InspectConfig:
    """Settings of this launcher."""

    trees: str | None = None  # tree file
    actions: Any = None  # base actions: annotations (those of the train split count), a text file, a list; null: all
    embed: str | None = None  # minilm, a run folder, or CLIP's text weights (.safetensors): how a text tower sees them
    object: str = "item"  # that stands beside every verb for the text tower
    output: str | None = None  # folder of the report; null: beside the tree file


def main(argv: Sequence[str]) -> None:
    """Print the table and the warnings, write the pictures."""
    config = typed_settings(argv, InspectConfig)
    if not config.trees:
        raise ConfigError("trees is not set: give a tree file as trees=...")
    from ace_dist.tools.synonyms.text_report import findings_table, text_encoder, write_synonym_report

    trees = SynonymTrees.load(config.trees)
    seen = set(trees.roots)
    if config.actions is not None:
        listed = read_actions(config.actions)
        seen = {action.verb for action in listed.shown_in("train") or listed.actions}
        trees.require(action.verb for action in listed.actions)
    findings = diagnose(trees, seen)
    spreads = embedding_spread(trees, text_encoder(config.embed), config.object) if config.embed else []
    print(findings_table(trees, findings, spreads))
    for warning in findings.warnings:
        print(f"warning: {warning}")
    out = Path(config.output) if config.output else Path(config.trees).with_suffix(".inspection")
    for path in write_synonym_report(trees, findings, spreads, seen, out):
        print(path)


if __name__ == "__main__":
    run_launcher(main)
