"""The question that asks a language model for synonyms: the paper's six constraints (ACE section 6.1), in our words.

The paper prints the prompt of one data set, whose domain is "toy assembly"; the domain phrase is a setting here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

TEMPLATE = """\
Give {count} synonyms of the action "{action}" as it is done during {domain}.
Follow these rules:
1. One synonym a line, without numbering, full stops or commas, and nothing else.
2. Every line means the same as "{action}" and makes sense during {domain}.
3. Every line begins with a verb and is in lower-case letters.
4. Keep the object and the sentence structure of "{action}".
5. A phrasal verb, such as "put down", stands as a whole at the beginning of its line.
6. If the verb of "{action}" is phrasal, prefer phrasal verbs, above all those that say something about space."""

FOLLOW_UP = "\nThese are known already, give {count} others: {known}."


def question(action: str, count: int, domain: str, known: Sequence[str] = ()) -> str:
    """The prompt for `count` synonyms of `action`; `known` lists those of earlier answers, when it asks again."""
    text = TEMPLATE.format(action=action, count=count, domain=domain)
    return text + (FOLLOW_UP.format(count=count, known="; ".join(known)) if known else "")


def template_hash() -> str:
    """SHA-256 of the wording, for provenance: trees made with another wording are told apart."""
    return hashlib.sha256((TEMPLATE + FOLLOW_UP).encode()).hexdigest()
