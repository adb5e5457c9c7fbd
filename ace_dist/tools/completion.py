"""Completion of `ace` commands and their settings in bash and zsh, out of what each command's `--help` says."""

import re
from collections.abc import Callable, Sequence

from ace_dist.config import GROUPS, choices, known_keys
from ace_dist.utils.errors import ConfigError

EVERY_KEY = "every key:"  # in the help of a command that composes a run
ASK = "complete -o nospace -o default -C 'ace completion' ace"
SCRIPTS = {"bash": ASK, "zsh": f"autoload -U +X bashcompinit && bashcompinit && {ASK}"}


def script(shell: str) -> str:
    if shell not in SCRIPTS:
        raise ConfigError(f"shell={shell} has no completion; there are {', '.join(SCRIPTS)}")
    return SCRIPTS[shell]


def complete(line: str, names: Sequence[str], help_text: Callable[[str], str]) -> list[str]:
    """What may stand at the end of `line`, which begins with `ace`: a command, a subcommand, a setting or its value.

    Readline counts `=` as the beginning of a word, so that after `key=` the values alone are returned.
    """
    *given, last = re.split(r"\s+", line.lstrip())[1:]
    words = [word for word in given if "=" not in word]
    found: set[str] = set()
    for name in names:
        parts = name.split()
        if parts[: len(words)] == words and len(parts) > len(words):
            found.add(f"{parts[len(words)]} ")
    if exact := [name for name in names if words and name.split() == words[: len(name.split())]]:
        found |= settings(help_text(exact[0]), last)
    elif words:  # `ace shards dataset=csv`: the first subcommand
        found |= settings(help_text(next((name for name in names if name.split()[0] == words[0]), "")), last)
    if words == ["own"] and len(given) == 1:
        found.discard("annotations=")  # the file may stand alone there: where nothing matches, the shell completes it
    matching = sorted(word for word in found if word.startswith(last))
    return [word.partition("=")[2] for word in matching] if "=" in last else matching


def settings(text: str, last: str) -> set[str]:
    """`key=` of every setting in a help text, or `group=NAME` of each file once the group is there."""
    keys = set(re.findall(r"^  ([a-z_.]+)=", text, re.MULTILINE))
    if EVERY_KEY in text:
        keys |= set(known_keys())
    group, equals, _ = last.partition("=")
    if equals and group in GROUPS:
        return {f"{group}={name}" for name in choices(group)}
    return {f"{key}=" for key in keys}
