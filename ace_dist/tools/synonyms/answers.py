"""The question that asks a language model for synonyms, and the verbs out of its answer, which is untrusted text.

The question states the six constraints of the paper (ACE section 6.1) in our words; the paper prints the prompt of one
data set, whose domain is "toy assembly", and the domain is a setting here. `prompt=FILE` asks in other words, those of
the paper itself with assets/prompts/ace_paper.txt. An answer should hold one phrase a line,
`verb ⊕ object` in lower case. What can be repaired without doubt (numbering, quotes, casing, articles, "pick the item
up") is repaired and noted; any other line is rejected with the reason.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from ace_dist.concepts.actions import PARTICLES, Action, normalise
from ace_dist.config import assets_dir, resolve_path
from ace_dist.tools.synonyms.answer_text import answer_lines
from ace_dist.utils.errors import ConfigError
from ace_dist.utils.reading import why_no_file
from ace_dist.utils.text import cut

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
PLACES = ("count", "action", "domain")  # that a template must have, each in braces

MAX_LINES = 200
MAX_VERB_WORDS = 3  # "get hold of"
SHOWN_CHARACTERS = 80  # of a rejected line in a report

# Letters of other scripts that look like Latin ones (from Unicode's confusables table). Applied only inside a word
# that also has Latin letters: a word wholly in another script is not English.
LOOK_ALIKES = str.maketrans(
    dict(zip("аеорсухіјѕһԁԛԝӏмтвнк", "aeopcyxijshdqwlmtbhk", strict=True))
    | dict(zip("οανικρτυχεγωϲ", "oavikptuxeywc", strict=True))
    | {"ı": "i", "ſ": "s", "ɑ": "a", "ɡ": "g", "’": "'", "‐": "-", "‑": "-"}
)
DASHES = "-–—―•·▪◦‣●○*+>→⇒|#✓✔☑✅"
# A line that doubts its phrase: "juggle block?", "juggle block (no, another meaning)", "juggle block ❌".
DOUBT = re.compile(
    r"\?\W*$|[✗✘✖❌⛔]|(?:\s[-–—=→]+>?|:|\(|[.!?])[^\w\n]*"
    r"(?:no|not|nope|wrong|incorrect|doesn't|isn't|hmm|reject|rejected|wait|maybe|perhaps|too)\b",
    re.IGNORECASE,
)


def word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


ARTICLES = frozenset({"the", "a", "an"})

# Words that no verb of an action begins with or contains: an answer in sentences is full of them.
FUNCTION_WORDS = word_set(
    """a an the this that these those i you we they he she it me us them my your our their its and or but nor not no
    never yes ok okay sure certainly here there sorry please thanks note hello hi is are was were be been being am
    does did don't doesn't can cannot can't could couldn't will would won't shall should may might must let's i'm i'll
    i've you're it's if then because since when while how what which who whom whose why where as synonym synonyms
    answer answers following constraint constraints example examples step action actions phrase verb verbs means also
    etc more less very another other others instead alternatively unfortunately ignore"""
)
PREPOSITIONS = word_set("in on into onto around through forward backward of to flat with at by for from")
# Verbs whose base form ends like an inflected one.
BASE_ING = word_set("bring cling fling king ping ring sing sling spring sting string swing wing wring ding")
BASE_ED = word_set("bed bleed breed embed exceed feed heed need proceed seed shed shred sled speed succeed wed weed")
BASE_S = ("ss", "us", "as", "is", "os")


@dataclass
class Answer:
    """The synonyms of one node, in the order of the answers, and what happened to other lines.

    `fault` says why there are too few synonyms, and is "" when there are enough.
    """

    verbs: list[str] = field(default_factory=list)
    repairs: list[str] = field(default_factory=list)  # "1. Rotate block -> rotate"
    rejected: list[str] = field(default_factory=list)  # "no idea!: the object is missing"
    answers: int = 0  # of a model, that were read
    fault: str = ""
    passing: bool = False  # the fault: asking again may give an answer


def read_template(path: str | None) -> str:
    """The wording of a question: a text file with `{count}`, `{action}` and `{domain}`; ours without one.

    Lines that begin with `#` are left out. Raises `ConfigError` for a file that is missing or lacks a place.
    """
    if path is None:
        return TEMPLATE
    file = resolve_path(path)
    if not file.is_file():
        raise ConfigError(
            f"prompt={path} {why_no_file(file)}; the paper's is {assets_dir() / 'prompts' / 'ace_paper.txt'}"
        )
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    template = "\n".join(lines).strip()
    if missing := [place for place in PLACES if f"{{{place}}}" not in template]:
        raise ConfigError(f"prompt={path} has no {', '.join(f'{{{place}}}' for place in missing)}")
    return template


def template_sha256(template: str) -> str:
    """Tells trees of other wordings apart."""
    return hashlib.sha256((template + FOLLOW_UP).encode()).hexdigest()


def question(action: str, count: int, domain: str, earlier: Sequence[str] = (), template: str = TEMPLATE) -> str:
    """The prompt for `count` synonyms of `action`; `earlier` lists those of earlier answers, when it asks again."""
    text = template
    for place, value in zip(PLACES, (str(count), action, domain), strict=True):
        text = text.replace(f"{{{place}}}", value)
    return text + (FOLLOW_UP.format(count=count, known="; ".join(earlier)) if earlier else "")


def parse_answer(text: str, action: Action, truncated: bool = False) -> Answer:
    """The synonyms of `action.verb` in `text`, each without the object, never the verb itself.

    `truncated`: the server cut the answer, so that its last line is not whole and is left out.
    """
    answer = Answer()
    target = action.object.split()
    read, aside = answer_lines(text, str(action))
    lines = [phrase for line in read for phrase in listed_phrases(line, target)]
    if aside:
        answer.rejected.append(f"{aside} characters of reasoning or explanation: not read")
    if truncated:
        last = excerpt(lines.pop()) if lines else "no phrase"
        answer.rejected.append(f"{last}: the answer was cut off here; raise max_output_tokens")
    # Verbs alone are taken when every line is a possible verb without the object; one other line leaves all in doubt.
    words = [tidy(line).split() for line in lines]
    objectless = len(lines) > 1 and all(
        plain(verb) and not with_object(verb, target) and not verb_fault(verb) for verb in words
    )
    for line in lines[:MAX_LINES]:
        verb, fault = read_line(line, action, objectless)
        if fault:
            answer.rejected.append(f"{excerpt(line)}: {fault}")
        elif verb == action.verb or verb in answer.verbs:
            answer.rejected.append(f"{excerpt(line)}: repeats {verb!r}")
        else:
            answer.verbs.append(verb)
            if line not in (f"{verb} {action.object}", verb):
                answer.repairs.append(f"{excerpt(line)} -> {verb}")
    if len(lines) > MAX_LINES:
        answer.rejected.append(f"{len(lines) - MAX_LINES} lines after the first {MAX_LINES}: not read")
    return answer


def listed_phrases(line: str, target: list[str]) -> list[str]:
    """A line as it is, or its parts where it lists whole phrases, or verbs alone, between commas."""
    parts = [re.sub(r"^\s*(?:and|or)\s+", "", part).strip() for part in re.split(r"[,;]", line.rstrip(".,; "))]
    parts = [part for part in parts if part]
    words = [tidy(part).split() for part in parts]
    whole = all(with_object(part, target) for part in words)
    verbs = all(plain(part) and not with_object(part, target) and not verb_fault(part) for part in words)
    return parts if len(parts) > 1 and (whole or verbs) else [line]


def plain(words: list[str]) -> bool:
    """At least one word, and nothing but ASCII letters, inner hyphens and apostrophes."""
    return bool(words) and all(re.fullmatch(r"[a-z]+(?:['-][a-z]+)*", word) for word in words)


def read_line(line: str, action: Action, objectless: bool) -> tuple[str, str]:
    """The verb of one line and "", or "" and why the line is not certain."""
    words = tidy(line).split()
    if not words:
        return "", "no words"
    if not plain(words):
        return "", "not plain words (digits, symbols or another script)"
    if DOUBT.search(line):
        return "", "the line doubts its phrase"
    verb = with_object(words, action.object.split()) or (words if objectless else [])
    fault = verb_fault(verb) if verb else f"not a verb followed by {action.object!r}"
    return ("", fault) if fault else (" ".join(verb), "")


def with_object(words: list[str], target: list[str]) -> list[str]:
    """The verb's words of `verb ⊕ object`, also of a phrasal verb around its object ("pick the item up"), or nothing.

    Articles do not count, but for an object that is called "a". An object within the verb shows that a line holds two
    phrases; a verb may begin with its word ("screw in screw").
    """
    articles = ARTICLES.difference(target[-1:])
    words, target = ([word for word in phrase if word not in articles] for phrase in (words, target))
    for start in range(len(words) - len(target), 0, -1):
        before, part, after = words[:start], words[start : start + len(target)], words[start + len(target) :]
        if not is_object(part, target):
            continue
        if before[:1] == ["to"]:
            before = before[1:]
        within = any(is_object(before[place : place + len(target)], target) for place in range(1, len(before)))
        if before and not within and all(word in PARTICLES for word in after):
            return [*before, *after]
    return []


def is_object(words: list[str], target: list[str]) -> bool:
    """Whether words are those of the object; its last one may be in the plural."""
    return words[:-1] == target[:-1] and words[-1] in (target[-1], target[-1] + "s", target[-1] + "es")


def verb_fault(verb: list[str]) -> str:
    """Why words cannot be a verb in its base form, "" when they can."""
    if len(verb) > MAX_VERB_WORDS:
        return f"{len(verb)} words before the object, at most {MAX_VERB_WORDS} make a verb"
    first = verb[0]
    if stop := [word for word in verb if word in FUNCTION_WORDS]:
        return f"{stop[0]!r} is no part of a verb"
    if first in PARTICLES or first in PREPOSITIONS:
        return f"begins with {first!r} and not with a verb"
    if len(first) < 2:
        return f"{first!r} is no verb"
    inflected = (
        (first.endswith("ing") and len(first) > 4 and first not in BASE_ING)
        or (first.endswith("ed") and len(first) > 3 and first not in BASE_ED)
        or (first.endswith("s") and not first.endswith(BASE_S))
    )
    if inflected:
        return f"{first!r} is not the base form of a verb"
    doing = next((word for word in verb[1:] if word.endswith("ing") and len(word) > 4 and word not in BASE_ING), None)
    return f"{doing!r} is what {first!r} is said of" if doing else ""  # "stop spinning" is no synonym of "spin"


def tidy(line: str) -> str:
    """A line without numbering, bullets, quotes, mark-up, invisible characters and look-alike letters; lower case."""
    text = unicodedata.normalize("NFKC", line)
    text = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cc", "Mn") or c in "\t ")
    words = [word.translate(LOOK_ALIKES) if re.search(r"[a-z]", word) else word for word in text.lower().split()]
    text = " ".join(words)
    text = text.strip(" \t" + DASHES)
    text = re.sub(r"^(?:\[[ x]?\]\s*|\(?\d{1,4}\s*[.):\-–]|\(?[a-z][.)])\s*", "", text)
    text = re.split(r"\s[-–—=→]+>?\s|:\s|\s\(", text)[0]  # an explanation after the phrase
    text = re.sub(r"[*_`\"“”„«»<>|\[\]{}]+|(?<!\w)'|'(?!\w)", " ", text)
    return normalise(text.strip(" \t.,;:!?" + DASHES))


def excerpt(line: str) -> str:
    printable = "".join(c if c.isprintable() else "�" for c in line.strip())
    return repr(cut(printable, SHOWN_CHARACTERS))
