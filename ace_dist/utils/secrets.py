"""Keeps keys, tokens and passwords out of whatever is written: configurations, environments, exports, logs, jobs.

`redact` is for running text, `redacted` for what becomes YAML or JSON: it hides whole values and breaks no syntax. The
shapes and names are those of detect-secrets 1.5 (github.com/Yelp/detect-secrets, Apache-2.0: its plugins and
`KeywordDetector`), Google's and Hugging Face's of gitleaks 8 (MIT). They are stated here and not imported, because
detect-secrets scans files for a report and would add `requests` and calls to each vendor.
"""

import os
import re
from typing import Any

HIDDEN = "<hidden>"

# Names of secrets that nothing else is called: whatever stands beside them is hidden, sentences too.
_KEY_OF = "api|auth|access|account|client|database|db|encryption|master|priv|private|service|shared|signing|ssh|storage"
_PASS_OF = "admin|database|db|ftp|key|mail|pg|redis|root|smtp|user"  # no password  # nosec B105
_DATABASE = r"database|db|redis|mongo(?:db)?|postgres(?:ql)?|mysql|amqp|broker|celery|sentry"
STRONG_NAMES = re.compile(
    rf"(?:^|[._-])(?:[a-z0-9]*(?:secret|password|passwd|passphrase|passcode|credential)|[a-z0-9]*(?:{_KEY_OF})[_-]?key"
    rf"|[a-z0-9]*(?:{_PASS_OF})[_-]?pass|[a-z0-9]+[_-]pat|[a-z0-9]*(?:auth|access|bearer)[_-]?token|[a-z0-9]+_token(?=$|[._-])"
    rf"|[a-z0-9]*(?:{_DATABASE})[_-]?(?:url|uri|dsn)|dsn|connection[_-]?string|authorization|cookie)s?(?:$|[._-])",
    re.I,
)
# Names that are ordinary words as well (`key: spin`): a value is hidden when it looks drawn at random.
WEAK_NAMES = re.compile(r"(?:^|[._-])(?:key|token|auth|pass|pwd|pin|sig|signature)s?(?:$|[._-])", re.I)

# Values that are secret whatever they are called.
SHAPES = re.compile(
    "|".join(
        (
            r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----[\s\S]*?(?:-----END [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----|\Z)",
            r"\b(?:A3T[A-Z0-9]|ABIA|ACCA|AKIA|ASIA)[0-9A-Z]{16}\b",  # AWS
            r"\bAIza[\w-]{35}|\bya29\.[\w-]{20,}|\bGOCSPX-[\w-]{20,}",  # Google
            r"\bsk-(?=[\w-]*[A-Z0-9])[\w-]{16,}",  # OpenAI, Anthropic
            r"\bhf_\w{16,}",  # Hugging Face
            r"\bgh[pousr]_\w{16,}|\bgithub_pat_\w{16,}",
            r"\bgl(?:pat|dt|ft|soat|rt|cbt|imt|ptt|agent|oas)-[\w-]{16,}|\bGR1348941[\w-]{16,}",  # GitLab
            r"\bxox[abposr]-[\w-]{10,}|https://hooks\.slack\.com/services/[\w/]+",  # Slack
            r"\b[sr]k_live_\w{16,}|\bsq0(?:csp|atp)-[\w-]{20,}",  # Stripe, Square
            r"\bSG\.[\w-]{22}\.[\w-]{43}|\b[0-9a-f]{32}-us\d{1,2}\b",  # SendGrid, Mailchimp
            r"\b(?:AC|SK)[a-f0-9]{32}\b|\b\d{8,10}:[\w-]{35}\b",  # Twilio, Telegram
            r"\b[MNO][\w-]{23,25}\.[\w-]{6}\.[\w-]{27}",  # Discord
            r"\bnpm_\w{36}|\bpypi-Ag[\w-]{50,}",
            r"\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?",  # JSON web token
            r"(?<=AccountKey=)[\w+/=]{40,}",  # Azure
            r"(?i:(?<=bearer ))[\w.~+/-]{16,}=*|(?<=Basic )(?=\S*[\d=+/]|\w*[a-z][A-Z])[\w+/]{8,}={0,2}",
            r"(?<=://)[^/\s:@]*:[^/\s]+(?=@)|(?<=://)[^/\s@]{20,}(?=@)",  # of a URL's user
        )
    )
)
# NAME=value, name: value, "name": "value", x["name"] = "value", --name value; in code also name: type = value.
NAME = r"""\b(?P<name>[A-Za-z][\w.-]*)["']?\]?"""
ASSIGNED = re.compile(rf"(?:{NAME}[ \t]*(?:=>?|:)[ \t]*|(?<![\w-])--(?P<flag>[A-Za-z][\w.-]*) +)")
ASSIGNED_IN_CODE = re.compile(rf"(?:{NAME}(?:: *[\w\[\]|. ]+?)?(?: *= *|: *)(?:[bfru]{{0,2}}(?=[\"'])))", re.I)
QUOTED = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'")
LINE = re.compile(r"[^\n]+")
WORDS = re.compile(
    r"[^\n\"',;&{}\[\]]+?(?=\s+-{0,2}[\w.-]+=|\s+--\w|\s*[\n\"',;&{}\[\]]|\s*\Z)"
)  # until the next NAME=
WORD = re.compile(r"[^\s\"',;&{}()\[\]]+")
EMPTY = re.compile(r"(?:true|false|null|none|~|\$\{.*\}|<hidden>)?\Z", re.I)
SHORTEST = 8  # characters; a shorter value of an environment variable would blot out ordinary words


def redact(text: str, code: bool = False) -> str:
    """Running text with every secret replaced by `<hidden>`.

    Secret is: the value of an environment variable with the name of a secret, wherever it stands; what stands beside
    such a name; and what has the shape of a well-known token. `code`: the text is a program's, so that only literals
    beside a name count, and `api_key = load_key()` stays.
    """
    for value in environment_secrets():
        text = text.replace(value, HIDDEN)
    return hide_assigned(SHAPES.sub(HIDDEN, text), code)


def redacted(value: Any, name: str = "") -> Any:
    """A copy of plain dictionaries, lists and values with every secret replaced by `<hidden>`, for YAML and JSON.

    `name`: what the value is called, when that is known.
    """
    if isinstance(value, dict):
        return {key: redacted(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item, name) for item in value]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return value
    return HIDDEN if is_secret(name, str(value)) else redact(value) if isinstance(value, str) else value


def is_secret(name: str, value: str) -> bool:
    """Whether a value is secret because of its name; `token: 512` and `key: spin` are not."""
    if EMPTY.match(value):
        return False
    return bool(STRONG_NAMES.search(name)) or (bool(WEAK_NAMES.search(name)) and looks_random(value))


def looks_random(value: str) -> bool:
    """Whether a word may be a token: eight characters or more, letters with digits, or long and of both cases."""
    if len(value) < SHORTEST or not WORD.fullmatch(value):
        return False
    letters, digits = re.search(r"[A-Za-z]", value), re.search(r"\d", value)
    return bool(letters and digits) or (len(value) >= 20 and value.lower() != value != value.upper())


def environment_secrets() -> list[str]:
    """Values of variables with the name of a secret, long ones first; a file or folder is none (SSH_AUTH_SOCK)."""
    names = [name for name in os.environ if STRONG_NAMES.search(name) or WEAK_NAMES.search(name)]
    values = {os.environ[name] for name in names if len(os.environ[name]) >= SHORTEST}
    return sorted((value for value in values if not os.path.exists(value)), key=len, reverse=True)


def hide_assigned(text: str, code: bool) -> str:
    """Text without the values that stand beside the names of secrets."""
    pieces, position = list[str](), 0
    for match in (ASSIGNED_IN_CODE if code else ASSIGNED).finditer(text):
        name = match["name"] or match["flag"]
        value = assigned_value(text, match, bool(STRONG_NAMES.search(name)))
        if match.start() >= position and value and is_secret(name, value[0].strip("\"'")):
            inside = len(value[0]) - len(value[0].lstrip("\"'")) and 1  # a quote on either side stays
            pieces += [text[position : value.start() + inside], HIDDEN]
            position = value.end() - inside
    return "".join([*pieces, text[position:]])


def assigned_value(text: str, match: re.Match[str], strong: bool) -> re.Match[str] | None:
    """The value behind a name: in quotes, the rest of a line that the name begins, several words, or one."""
    if quoted := QUOTED.match(text, match.end()):
        return quoted
    begins_line = not text[text.rfind("\n", 0, match.start()) + 1 : match.start()].strip("+- \t\"'")
    kind = (LINE if begins_line and ":" in match[0] else WORDS) if strong else WORD
    return kind.match(text, match.end())
