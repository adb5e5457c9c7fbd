"""Keeps keys, tokens and passwords out of whatever is written: configurations, environments, logs, jobs."""

import os
import re

HIDDEN = "<hidden>"

# Names of variables and settings whose values are secret: KEY, TOKEN, SECRET, PASSWORD, ... as a word of the name.
SECRET_NAMES = re.compile(
    r"(?:^|[._-])(?:[a-z0-9]*(?:apikey|secret|password|passwd|passphrase|credential)|key|token|auth)s?(?:$|[._-])", re.I
)
# A name, a separator, a value: NAME=value, name: value, "name": "value", --name value.
ASSIGNMENT = re.compile(r"""(?P<name>[A-Za-z][\w.-]*)(?P<between>["']?\s*[=:]\s*["']?)(?P<value>[^\s"',;}&]+)""")
# Values that are secret whatever their name: tokens of OpenAI and Anthropic, Hugging Face, GitHub, GitLab, AWS, Slack;
# the word after Bearer; the password in a URL.
SHAPES = re.compile(
    r"\b(?:sk-[\w-]{16,}|hf_\w{16,}|gh[pousr]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|AKIA[0-9A-Z]{16}|xox[bap]-[\w-]{10,})"
    r"|(?<=Bearer )\S+|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
SHORTEST = 8  # an environment value shorter than this would blot out ordinary words


def redact(text: str) -> str:
    """`text` with every secret replaced by `<hidden>`.

    Secret is: the value of an environment variable whose name matches `SECRET_NAMES`, wherever it stands; the value
    beside such a name (numbers and truth values excepted: `max_tokens=512`); and what looks like a well-known token.
    """
    for name, value in os.environ.items():
        if SECRET_NAMES.search(name) and len(value) >= SHORTEST:
            text = text.replace(value, HIDDEN)
    return ASSIGNMENT.sub(hide_assigned, SHAPES.sub(HIDDEN, text))


def hide_assigned(match: re.Match[str]) -> str:
    """One assignment, without its value when its name is secret."""
    harmless = re.fullmatch(r"[-+.\d]+(?:e[-+]?\d+)?|true|false|null|none|<hidden>", match["value"], re.I)
    if harmless or not SECRET_NAMES.search(match["name"]):
        return match[0]
    return f"{match['name']}{match['between']}{HIDDEN}"
