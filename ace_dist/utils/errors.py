"""The one base class of everything that a user, and not a bug, can get wrong."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(ValueError):
    """Bad input. The message names the file, the value found, and the setting to change.

    Launchers print it as one line, `error: ...`, and exit with status 2.
    """
