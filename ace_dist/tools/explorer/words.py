"""The words of a visitor: for each label its phrases, and whether each of them votes."""

from collections.abc import Iterable

from ace_dist.concepts.actions import normalise
from ace_dist.tools.explorer.session import Explorer

Words = dict[str, list[tuple[str, bool]]]


def typed_words(explorer: Explorer, lines: Iterable[str]) -> Words:
    """The typed labels with the phrases of their trees. Raises `UserError` for labels that cannot be compared."""
    labels = [line.strip() for line in lines if line.strip()]
    return {label: [(p, True) for p in phrases] for label, phrases in explorer.synonyms(labels).items()}


def voting(words: Words) -> dict[str, list[str]]:
    return {label: [phrase for phrase, on in group if on] for label, group in words.items()}


def switched(words: Words, label: str, phrase: str) -> Words:
    """With a phrase of a label switched off, or on again."""
    return {**words, label: [(p, on != (p == phrase)) for p, on in words[label]]}


def added(words: Words, label: str, phrase: str) -> Words:
    phrase = normalise(phrase)
    if not phrase or phrase in [p for p, _ in words[label]]:
        return words
    return {**words, label: [*words[label], (phrase, True)]}
