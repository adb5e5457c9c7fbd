"""How a command ends that could not do its work: one line on stderr and an exit status."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ace_dist.cli.settings import RunWords
from ace_dist.utils.errors import UserError
from ace_dist.utils.secrets import redact
from ace_dist.utils.text import printable

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_SUCH_PLACE = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)


def exit_status(run: RunWords, words: Sequence[str]) -> int:
    """Run the command of `words`; returns its exit status.

    A `UserError` is one line on stderr and 2; so are a full disk, a path that may not be read or written, and one that
    cannot be. Any other `OSError` is a bug and stays one. Ctrl-C gives 130.
    """
    try:
        return run(words)
    except UserError as error:
        print(f"error: {printable(redact(str(error)))}", file=sys.stderr)
        if error.leaves_threads:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(2)
        return 2
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (*NO_SPACE, *NO_PERMISSION, *NO_SUCH_PLACE):
            raise
        print(f"error: {error.filename or 'writing'}: {error.strerror}; {refusal_remedy(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def refusal_remedy(error: OSError) -> str:
    """What the owner of a file can do that could not be read or written."""
    again = "(run=, dataset.shards= or output=), then give the command again"
    if error.errno in NO_SPACE:
        return f"free some space or write to another disk {again}"
    if error.errno in NO_SUCH_PLACE:
        return f"name another path {again}"
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    folders = [folder for folder in path.absolute().parents if os.path.isdir(folder)] if path else []
    closed = folders and not os.access(folders[0], os.X_OK)
    if path and (closed or (os.path.exists(path) and not os.access(path, os.R_OK))):
        return f"let this user read it (`ls -ld {shlex.quote(str(folders[0] if closed else path))}` shows who may)"
    return f"write to a folder of yours {again}"
