"""Every command: `ace NAME key=value ...`, which `python -m ace_dist NAME` and `python launchers/NAME.py` run too.

A file a topic, a function a command: it parses its settings, calls the room that does the work, and says what came out.
`entry` has the table of all. Rooms that need torch are imported inside the commands: `--help` needs none, nor do the
processes that check shards, which import this package too.
"""

from ace_dist.cli.entry import COMMANDS, LAUNCHERS, ace, execute, find_command, help_text, main, start

__all__ = ["COMMANDS", "LAUNCHERS", "ace", "execute", "find_command", "help_text", "main", "start"]
