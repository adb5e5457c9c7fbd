"""Synonym trees: `ace synonyms`."""

from __future__ import annotations

from ace_dist.config import parse_settings


def build_synonyms(argv: list[str]) -> None:
    """Build synonym trees: `ace synonyms actions=FILE output=FILE source=wordnet children=6`.

    With a language model: `source=model model=NAME domain="toy assembly" [base_url=URL]`, the key in OPENAI_API_KEY.
    Exits with 3 when some nodes are missing; the same command asks for them again.
    By hand: `manual=export trees=FILE sheet=FILE.csv`, edit, `manual=import trees=FILE sheet=FILE.csv output=FILE`.
    """
    from ace_dist.tools.synonyms.build import BuildConfig
    from ace_dist.tools.synonyms.commands import build_command

    build_command(parse_settings(argv, BuildConfig))


def inspect_synonyms(argv: list[str]) -> None:
    """Look for faults in synonym trees: `ace synonyms inspect trees=FILE [actions=FILE]`.

    `embed=minilm` adds how a text tower sees them. Prints the table and the warnings, writes the pictures.
    """
    from ace_dist.tools.synonyms.commands import InspectConfig, inspect_command

    inspect_command(parse_settings(argv, InspectConfig))


def synonym_senses(argv: list[str]) -> None:
    """List every sense of a verb in WordNet: `ace synonyms senses VERB`, such as `ace synonyms senses pick up`.

    One of them is picked in a build with `senses='{VERB: NAME}'`.
    """
    from ace_dist.tools.synonyms.commands import SensesConfig, senses_command

    words = [word for word in argv if "=" not in word and not word.startswith("-")]
    settings = [word for word in argv if word not in words]
    senses_command(parse_settings([*settings, *([f"verb={' '.join(words)}"] if words else [])], SensesConfig))
