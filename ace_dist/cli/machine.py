"""The package on this machine: `ace config` (its settings files), `ace doctor`, `ace completion` (the tab key)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ace_dist.cli.settings import NoSettings
from ace_dist.config import GROUPS, choices, did_you_mean, help_asked, parse_settings, shipped_file
from ace_dist.utils.errors import ConfigError


def config_list(argv: list[str]) -> None:
    """List the settings files that come with the package: `ace config list`."""
    parse_settings(argv, NoSettings)
    print(*shipped_choices(), sep="\n")


def shipped_choices() -> list[str]:
    return [f"{group}=  {', '.join(choices(group))}" for group in (*GROUPS, "cluster")]


def config_get(argv: list[str]) -> None:
    """Print a settings file, to begin yours with: `ace config get dataset=csv > mine.yaml`.

    Yours is used by its path, which ends in `.yaml`: `dataset=mine.yaml`.
    """
    if help_asked(argv):
        print("", *shipped_choices(), sep="\n  ")
        raise SystemExit(0)
    asked = dict(word.partition("=")[::2] for word in argv)
    for group in asked:
        if group not in (*GROUPS, "cluster"):
            raise ConfigError(f"unknown setting {group!r}{did_you_mean(group, GROUPS)}; there are {', '.join(GROUPS)}")
    if len(asked) != 1:
        raise ConfigError("give one file as GROUP=NAME, for example dataset=csv; `ace config list` shows them")
    print(shipped_file(*asked.popitem()).read_text(encoding="utf-8"), end="")


def doctor(argv: list[str]) -> int:
    """Say what this machine has, what is missing, and what would be slow and why: `ace doctor`.

    Exits with 1 when something must be mended. `ace preflight` checks the settings of a run, on all its ranks.
    """
    parse_settings(argv, NoSettings)
    from ace_dist.tools.doctor import doctor

    text, good = doctor()
    print(text)
    return int(not good)


@dataclass
class CompletionSettings:
    shell: str = "bash"  # or zsh


def completion(argv: list[str], names: Callable[[], Sequence[str]], help_text: Callable[[str], str]) -> None:
    """Print what completes commands and settings at the tab key: `eval "$(ace completion)"` in ~/.bashrc.

    For zsh: `eval "$(ace completion shell=zsh)"` in ~/.zshrc.
    """
    from ace_dist.tools.completion import complete, script

    if (line := os.environ.get("COMP_LINE")) is not None:  # the shell asks
        print(*complete(line[: int(os.environ.get("COMP_POINT", len(line)))], names(), help_text), sep="\n")
        return
    print(script(parse_settings(argv, CompletionSettings).shell))
