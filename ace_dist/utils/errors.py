"""What a user, and not a bug, can get wrong: one class for each room, so that a caller can tell them apart.

A message names the file, the value found, and the setting to change. Launchers print it as one line, `error: ...`, and
exit with status 2. `ace_kernels` has a class of its own, since it depends on torch alone.
"""

from collections.abc import Sequence

LISTED = 20  # problems that one message names


class UserError(ValueError):
    """Bad input of any kind."""

    leaves_threads = False  # of a library, which may abort the process at its ordinary end: it is to end at once


class ConfigError(UserError):
    """A setting that does not exist, has the wrong type, or contradicts another one."""


class LabelError(UserError):
    """Actions, synonym trees, class lists or label sets that do not fit together."""


class DataError(UserError):
    """Annotations, videos or shards that cannot be read or were made for other settings."""


class ModelError(UserError):
    """Weights that do not fit the model, or a tower that cannot do what a setting asks."""


class RunError(UserError):
    """A run folder, a checkpoint, a job or a training state that cannot be used as asked."""


def listing(problems: Sequence[str]) -> str:
    """Problems for a message, one an indented line; beyond 20 their number."""
    more = [f"... and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
    return "\n  ".join(["", *problems[:LISTED], *more])
