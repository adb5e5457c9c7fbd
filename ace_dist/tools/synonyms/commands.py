"""What the launchers build_synonyms and inspect_synonyms do with their settings."""

import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from ace_dist.concepts import SynonymTrees
from ace_dist.concepts.actions import normalise
from ace_dist.concepts.makers import maker_node
from ace_dist.concepts.wordnet import VULGAR, WordNet, find_wordnet
from ace_dist.tools.synonyms.action_list import read_actions
from ace_dist.tools.synonyms.build import BuildConfig, build
from ace_dist.tools.synonyms.diagnostics import diagnose, embedding_spread
from ace_dist.tools.synonyms.sheet import export_sheet, import_sheet
from ace_dist.utils.errors import ConfigError

INCOMPLETE = 3  # exit status of a build that lacks nodes
COLUMNS = (
    "synonyms: of the verb itself, which is one of them; all verbs: with the synonyms' synonyms; shared: with another "
    "concept; wrong verbs: that may stand in a wrong label of it (Eq. 6)\n"
    "unchanged: share of its draws (Eq. 4) that average the phrases of its root label, so L_rand repeats L_fixed"
)
NEXT = {
    True: "the same command continues",
    False: "the same command ends the same way: change what the lines above name, or complete the file by hand "
    "(manual=export)",
}
SHOWN = 20  # missing nodes that are printed; the file names all of them


@dataclass
class InspectConfig:
    """Settings of `ace synonyms inspect`."""

    trees: str | None = None  # tree file
    actions: Any = None  # base actions: annotations (those of the train split count), a text file, a list; null: all
    embed: str | None = None  # minilm, a run folder, or CLIP's text weights (.safetensors): how a text tower sees them
    children: int | None = None  # M of the first order, as method.children cuts the trees for a run; null: all
    grandchildren: int | None = None  # M of the second order
    children_include_parent: bool = True  # M counts the parent verb itself
    object: str = "item"  # that stands beside every verb for the text tower
    output: str | None = None  # folder of the report; null: beside the tree file


@dataclass
class SensesConfig:
    """Settings of `ace synonyms senses`."""

    verb: str = MISSING  # the verb, which may stand alone: `ace synonyms senses pick up`
    wordnet: str | None = None  # folder of the database; null: the PyPI package's or Debian's


def senses_command(config: SensesConfig) -> None:
    """Print what our own list has for a verb, and every sense of it in WordNet; `*` marks the one that is taken."""
    verb = normalise(config.verb)
    if own := maker_node(verb):
        print(f"{verb!r} is in our own list, which is taken: {', '.join(own[1:])}")
    wordnet = WordNet(find_wordnet(config.wordnet))
    if own and verb not in wordnet.index:
        print("WordNet has no such verb")
        return
    listed, chosen = wordnet.listed(verb), wordnet.sense(verb)
    if listed != verb.replace("-", " "):
        print(f"WordNet has no verb {verb!r}; these are the senses of {listed!r}")
    for sense in wordnet.at(wordnet.index[listed]):
        star = "*" if sense is chosen and not own else " "
        verbs = "" if VULGAR.search(sense.gloss) else f"  [{', '.join(sense.verbs)}]"
        print(f"{star} {wordnet.name(listed, sense)}  {sense.definition}{verbs}")
    name = wordnet.name(listed, chosen)
    print(f"to take one: ace synonyms actions=FILE output=FILE source=wordnet senses='{{{verb}: {name}}}'")


def build_command(config: BuildConfig) -> None:
    """Build, export or import; say what is missing and what looks wrong. Exits with 3 when nodes are missing."""
    if config.manual is not None:
        edit_by_hand(config)
        return
    result = build(config)
    if result is None:  # a dry run
        return
    for node, reason in list(result.missing.items())[:SHOWN]:
        print(f"missing: {node}: {reason}", file=sys.stderr)
    if result.missing:
        nodes = f"{len(result.missing)} node{'s' * (len(result.missing) > 1)} missing"
        print(f"{result.path}: {nodes}; {NEXT[result.continues]}", file=sys.stderr)
        raise SystemExit(INCOMPLETE)
    print_findings(result.path, read_actions(config.actions).base_verbs())


def edit_by_hand(config: BuildConfig) -> None:
    if config.manual not in ("export", "import") or not (config.trees and config.sheet):
        raise ConfigError("manual=export|import needs trees=FILE.json and sheet=FILE.csv, import also output=FILE.json")
    if config.manual == "export":
        print(f"{config.sheet}: {export_sheet(Path(config.trees), Path(config.sheet))} rows")
        return
    if not config.output:
        raise ConfigError("manual=import needs output=FILE.json")
    changes = import_sheet(Path(config.sheet), Path(config.trees), Path(config.output), config.editor)
    print("\n".join(changes) or "no difference")
    print_findings(Path(config.output))


def print_findings(path: Path, base: Collection[str] | None = None) -> None:
    """One line on the trees, and what the diagnostics warn of; `base` are the verbs that train (default: all)."""
    trees = SynonymTrees.load(path)
    findings = diagnose(trees, base)
    print(f"{path}: {len(trees.roots)} trees, {len(trees.verbs())} different verbs, {len(findings.warnings)} warnings")
    for warning in findings.warnings:
        print(f"warning: {warning}")


def inspect_command(config: InspectConfig) -> None:
    """Print the table and the warnings, write the pictures."""
    if not config.trees:
        raise ConfigError("trees is not set: give a tree file as trees=...")
    from ace_dist.tools.synonyms.text_report import findings_table, text_encoder, write_synonym_report

    trees = SynonymTrees.load(config.trees, config.children, config.grandchildren, config.children_include_parent)
    base = set(trees.roots)
    if config.actions is not None:
        listed = read_actions(config.actions)
        base = listed.base_verbs()
        trees.require(action.verb for action in listed.actions)
    findings = diagnose(trees, base)
    spreads = embedding_spread(trees, text_encoder(config.embed), config.object) if config.embed else []
    print(findings_table(trees, findings, spreads), COLUMNS, sep="\n")
    for warning in findings.warnings:
        print(f"warning: {warning}")
    output = Path(config.output) if config.output else Path(config.trees).with_suffix(".inspection")
    if not (findings.first or findings.second):
        print("no two concepts share a verb, so there is no picture of overlaps")
    for path in write_synonym_report(trees, findings, spreads, base, output):
        print(path)
