"""Words that every command takes: `umask=077`, `verbose=true`, `key=~/x`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from ace_dist.utils.console import VERBOSE
from ace_dist.utils.errors import ConfigError


def with_home(argv: Sequence[str]) -> list[str]:
    """`key=~/x` and `key=[~/x, ~/y]` as some shells hand them over: no command makes or reads a folder called `~`."""
    home = os.path.expanduser("~")
    return [re.sub(r"(?<=[=\[,])(\s*)~(?=/)", lambda found: found[1] + home, word) for word in argv]


def take_umask(argv: Sequence[str]) -> list[str]:
    """The words without `umask=NNN`, which this process and all that it starts, jobs too, write their files under."""
    for word in argv:
        if word.startswith("umask="):
            if not re.fullmatch(r"umask=0?[0-7]{3}", word):
                raise ConfigError(f"{word} is not three octal digits, such as umask=077 (nobody else reads the files)")
            os.umask(int(word.partition("=")[2], 8))
    return [word for word in argv if not word.startswith("umask=")]


def take_verbose(argv: Sequence[str]) -> list[str]:
    """The words without `verbose=true`, or `--verbose`, which this process and all that it starts go by."""
    for word in argv:
        if word == "--verbose" or word.startswith("verbose="):
            if word not in ("--verbose", "verbose=true", "verbose=false"):
                raise ConfigError(f"{word} is not verbose=true or verbose=false")
            os.environ[VERBOSE] = str(int(word != "verbose=false"))
    return [word for word in argv if word != "--verbose" and not word.startswith("verbose=")]
