"""Actions as verb and object: splits labels, phrasal verbs included, and joins them again (ACE section 3.2)."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

from ace_dist.utils.errors import LabelError


@dataclass(frozen=True, slots=True, order=True)
class Action:
    """An action `a = v ⊕ o`: a verb, possibly phrasal, and an object phrase. `str` gives the label."""

    verb: str
    object: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "verb", normalise(self.verb))
        object.__setattr__(self, "object", normalise(self.object))
        if not self.verb:
            raise LabelError(f"an action with the object {self.object!r} has no verb")
        if not self.object:
            raise LabelError(
                f"the action {self.verb!r} has no object; where there is none, write a placeholder such as "
                f"'ingredient' or 'item' (column `object` of the annotations, or the words after the verb)"
            )

    def __str__(self) -> str:
        return f"{self.verb} {self.object}"

    def with_verb(self, verb: str) -> Self:
        """`verb ⊕ O(a)`."""
        return replace(self, verb=verb)

    @classmethod
    def parse(cls, label: str, verbs: Iterable[str] = ()) -> Self:
        """Split `label` at its verb: the longest of `verbs` that it begins with, else its first word.

        `Action.parse("lay down side panel", verbs=["lay", "lay down"])` has the verb "lay down". A particle that
        follows the first word ("pick up item") belongs to the verb even when `verbs` does not list it. Raises
        `LabelError` when no object is left.
        """
        words = normalise(label).split(" ")
        if words == [""]:
            raise LabelError(f"the label {label!r} is empty")
        listed = [normalise(verb).split(" ") for verb in listed_texts(verbs)]
        length = max((len(verb) for verb in listed if verb != [""] and words[: len(verb)] == verb), default=0)
        if not length:
            length = 2 if len(words) > 1 and words[1] in PARTICLES else 1
        verb, object_ = " ".join(words[:length]), " ".join(words[length:])
        if not object_:
            raise LabelError(
                f"the label {label!r} has no object after its verb {verb!r}; write one, such as '{verb} item'"
            )
        return cls(verb, object_)


# Adverbial particles that make English verbs phrasal. Prepositions that usually open an object phrase ("in", "on",
# "to") are left out: "insert in box" has the verb "insert".
PARTICLES = frozenset({"up", "down", "away", "apart", "together", "over", "off", "out", "back", "aside", "upright"})


# In a label underscores and hyphens are spaces; soft hyphens, zero-width spaces and byte order marks are nothing.
LABEL_CHARACTERS = dict.fromkeys(map(ord, "_-\u2010\u2011\u2012\u2013\u2014\u2015\u2212"), " ")
LABEL_CHARACTERS |= dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"), "")


def normalise(text: str) -> str:
    """The one form of a label or a verb: "Pick_Up", "pick-up" and " PICK  up" are all "pick up".

    Lower case, single spaces, no underscores and hyphens; characters that look alike are alike (NFKC). Everything that
    reads a label or compares two goes through here.
    """
    return " ".join(unicodedata.normalize("NFKC", text).translate(LABEL_CHARACTERS).lower().split())


def listed_texts(texts: str | Iterable[str]) -> list[str]:
    """Texts as a list; a plain text is a list of one, and not of its letters. Raises `LabelError` for other things."""
    listed = [texts] if isinstance(texts, str) or not isinstance(texts, Iterable) else list(texts)
    for text in listed:
        if not isinstance(text, str):
            raise LabelError(f"{text!r} is no text; labels and verbs are texts, such as 'lift block'")
    return listed


def base_forms(verb: str) -> list[str]:
    """What an inflected verb may be a form of, likely ones first: "opening" -> "opening", "open", "opene".

    Only its first word changes ("picking up" -> "pick up"). By WordNet's rules of detachment (morphy(7WN)), and the
    doubled consonant of "putting". For hints: a spelling alone cannot say that "opening" is no verb of its own.
    """
    first, space, rest = normalise(verb).partition(" ")
    forms = [first]
    for ending, replacements in ENDINGS.items():
        stem = first.removesuffix(ending)
        if stem != first and len(stem) > 1:
            doubled = [stem[:-1]] if replacements[-1] == "e" and stem[-1] == stem[-2] else []
            forms += [*doubled, *(stem + replacement for replacement in replacements)]
    return [f"{form}{space}{rest}" for form in dict.fromkeys(forms)]


ENDINGS = {"ing": ("", "e"), "ed": ("", "e"), "ies": ("y",), "es": ("e", ""), "s": ("",)}
