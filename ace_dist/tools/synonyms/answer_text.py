"""The lines of a model's answer that may hold phrases, out of whatever shape the answer has.

Models reason before they answer (between tags, in channels, under headings, or without any mark) and write lists, JSON
or tables. What may be reasoning is set aside: a phrase that is lost is asked for again, a wrong one would stay.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

MAX_CHARACTERS = 20_000  # of an answer that are looked at; ten synonyms need about 200

# Marks of reasoning: <think>, <seed:think>, [THINK] (Magistral), ◁think▷ (Kimi), <|START_THINKING|> (Command A),
# <|begin_of_thought|>, <|channel|>analysis<|message|> (gpt-oss; "analysisWe ... assistantfinal" without its marks).
NAME = r"(?:\w{1,20}:)?(?:think(?:ing)?|thoughts?|reasoning|reason|reflection|analysis|scratchpad)"
BEGIN = re.compile(
    rf"<{NAME}\b[^<>\n]{{0,80}}>|\[{NAME}\]|◁{NAME}▷|<\|(?:start|begin)_(?:of_)?{NAME}\|>"
    r"|<\|channel\|>(?!final)|\A\s*(?:analysis|commentary)(?=[^\s:])|</answer>|<\|(?:end|return|call)\|>",
    re.IGNORECASE,
)
END = re.compile(
    rf"</{NAME}\s*>|\[/{NAME}\]|◁/{NAME}▷|<\|end_(?:of_)?{NAME}\|>|<answer>"
    r"|<\|channel\|>final\b[^<\n]{0,80}<\|message\|>|assistantfinal"
    r"|^[^\w\n]*(?:the |my |here is my )?final (?:answer|list|output)\b[^:\n]{0,40}(?::|$)",
    re.IGNORECASE | re.MULTILINE,
)
# Reasoning without a mark, as its first words tell: the prompt's template opened it, and no end came.
UNMARKED = re.compile(
    r"\W*(?:(?:okay|ok|alright|hmm+|well|so|first)\b\W*)*"
    r"(?:let me|let's|the user|we (?:need|are asked|have|must)|i (?:need|have|should|must)|i'll think|thought for)\b",
    re.IGNORECASE,
)
HEADING = r"[^\w\n]*(?:\d+[.)]\s*)?"
ASIDE = re.compile(  # a heading above what is no answer
    rf"{HEADING}(?:{NAME}|thought process|rationale|explanations?|notes?|rejected|avoid(?:ed)?|excluded|discarded"
    r"|unsuitable|not|antonyms|why|incorrect|wrong)\b[^:\n]{0,40}(?::|\*\*\W*$)"
    rf"|\s*#+\s*(?:{NAME}|rationale|explanations?|notes?)\b",
    re.IGNORECASE,
)
ANSWER = re.compile(  # a heading above the answer, or before it on its line
    rf"{HEADING}(?:[\w' ,]{{0,60}}\b)?(?:synonyms|answers?|output|response|results?|list|phrases)\b[^:\n]{{0,60}}:",
    re.IGNORECASE,
)
MARKUP = re.compile(r"</?(?:answers?|synonyms?|phrases?|items?|li|ol|ul|p|br|output|response)\s*/?>|<\|\w+\|>", re.I)
TABLE_RULE = re.compile(r"(?=.*\|)[\s|:-]*--[\s|:-]*")  # the line below the head of a table
INLINE_ITEM = re.compile(r"\s+(?=\(?\d{1,3}[.)]\s|[•▪◦‣●○]\s)")  # before "2. turn block" on one line with "1."
# Names of a JSON object's fields: those that may hold phrases, and those that may not whatever else they say.
WANTED = re.compile(r"synonym|phrase|action|answer|alternative|verb|label|text|result|output|item|list|\A\d+\Z", re.I)
UNWANTED = re.compile(r"reason|think|thought|analy|expla|note|reject|avoid|exclu|discard|why|antonym|not|bad", re.I)


def answer_lines(text: str, action: str) -> tuple[list[str], int]:
    """The lines that may hold synonyms of the label `action`, and the number of characters that were set aside."""
    body = without_reasoning(text)
    lines = [part for line in json_lines(body[:MAX_CHARACTERS]) for part in MARKUP.sub("\n", line).splitlines()]
    spoken, aside = split_asides(table_rows(lines, action))
    kept = [part.strip() for line in spoken for part in INLINE_ITEM.split(line) if re.search(r"\w", part)]
    return kept, len(text) - len(body) + sum(map(len, aside))


def without_reasoning(text: str) -> str:
    """`text` after the last end of reasoning and before the next beginning; nothing when there is no end to it."""
    ends = [mark.end() for mark in END.finditer(text)]
    if not ends and UNMARKED.match(text):
        return ""
    body = text[ends[-1] :] if ends else text
    begin = BEGIN.search(body)
    return body[: begin.start()] if begin else body


def json_lines(body: str) -> Iterator[str]:
    """The lines, each JSON value among them replaced by its phrases. Fences are left out.

    An object that does not end is one line, which is no phrase: its fields cannot be told apart.
    """
    body = "\n".join(line for line in body.splitlines() if not line.strip().startswith(("```", "~~~")))
    position = 0
    while bracket := re.compile(r"[\[{]").search(body, position):
        try:
            value, end = json.JSONDecoder().raw_decode(body, bracket.start())
        except (ValueError, RecursionError):  # a number of 5,000 digits is a ValueError
            if body[bracket.start()] == "{":
                body = body[: bracket.start()] + " ".join(body[bracket.start() :].split())
            break
        yield from body[position : bracket.start()].splitlines()
        yield from phrases_in(value)
        position = end
    yield from body[position:].splitlines()


def phrases_in(value: Any) -> Iterator[str]:
    """The strings of a JSON value, of objects those of the fields that may hold phrases (lists, if there are any)."""
    if isinstance(value, str):
        yield from value.splitlines()
    elif isinstance(value, list):
        for item in value:
            yield from phrases_in(item)
    elif isinstance(value, dict):
        wanted = [item for name, item in value.items() if WANTED.search(name) and not UNWANTED.search(name)]
        for item in [item for item in wanted if isinstance(item, list | dict)] or wanted:
            yield from phrases_in(item)


def table_rows(lines: list[str], action: str) -> Iterator[str]:
    """The lines, rows of a table as "phrase - what other columns say", without its head, numbers and `action`."""
    for line, below in zip(lines, [*lines[1:], ""], strict=False):
        if TABLE_RULE.fullmatch(line) or TABLE_RULE.fullmatch(below):
            continue
        if "|" in line:
            cells = [cell.strip(" *`\"'") for cell in line.strip().strip("|").split("|")]
            line = " - ".join(cell for cell in cells if not re.fullmatch(r"\W*\d*\W*", cell) and cell.lower() != action)
        yield line


def split_asides(lines: Iterator[str]) -> tuple[list[str], list[str]]:
    """The lines of the answer, and those under a heading of reasoning, explanations or rejected phrases."""
    spoken: list[str] = []
    aside: list[str] = []
    into = spoken
    for line in lines:
        heading = ANSWER.match(line)
        into = spoken if heading else aside if ASIDE.match(line) else into
        into.append(line[heading.end() :] if heading else line)
    return spoken, aside
