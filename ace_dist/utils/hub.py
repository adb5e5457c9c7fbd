"""Downloads that go on where they stopped, and the faults of a model hub in one sentence.

HF_ENDPOINT (a mirror), HF_HUB_OFFLINE, HF_TOKEN, HF_HOME and the proxies of the environment are read by
`huggingface_hub`, through which everything goes; so they hold for files from elsewhere too.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ace_dist.utils.errors import RunError


@contextmanager
def hub_errors(what: str, advice: str) -> Iterator[None]:
    """Whatever the network or the hub refuses becomes a `RunError` that begins with `what` and ends with `advice`.

    Faults of this machine's disk stay `OSError`.
    """
    import httpx2
    from huggingface_hub import errors as faults

    try:
        yield
    except (OSError, httpx2.HTTPError, faults.HFValidationError, faults.XetDownloadError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise RunError(f"{what}: {reason(error)}; {advice}") from error


def reason(error: Exception) -> str:
    """Why the hub or the network refused, in words, with the setting that changes it where there is one."""
    from huggingface_hub import constants
    from huggingface_hub import errors as faults

    response = getattr(error, "response", None)
    if isinstance(error, faults.GatedRepoError):
        return "its owner asks you to accept terms on its page first; then set HF_TOKEN to a token of yours"
    if isinstance(error, faults.RepositoryNotFoundError):
        return f"{constants.ENDPOINT} knows no such repository, or it is private and HF_TOKEN may not read it"
    if isinstance(error, faults.OfflineModeIsEnabled | faults.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        return "it is not on this machine, and HF_HUB_OFFLINE forbids to fetch it"
    if getattr(response, "status_code", None) in (401, 403):
        return f"the server refuses it ({response.status_code}); HF_TOKEN must be a token that may do this"  # type: ignore[union-attr]
    return " ".join(str(error).split()) or type(error).__name__


def download(url: str, file: Path, size: int | None = None, headers: Mapping[str, str] | None = None) -> None:
    """Download to a file of `size` bytes, if that is known, with a progress bar.

    What was fetched before a stop lies beside it as `NAME.partial`, where the same call goes on. A broken connection
    is opened again five times. Raises `RunError` when another process downloads the same file.
    """
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get

    partial = file.with_name(f"{file.name}.partial")
    file.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("ab") as out:
        try:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"{partial} is written by another process; wait for its end, or stop it") from error
        begun = out.tell()
        if begun:
            print(f"{partial}: {begun / 2**20:.1f} MiB are there, the download goes on behind them", flush=True)
        try:
            http_get(
                url,
                out,
                resume_size=begun,
                headers=dict(headers or {}),
                expected_size=size,
                displayed_filename=file.name,
            )
        except HfHubHTTPError as error:
            if error.response.status_code == 416:  # there is nothing behind them: the file is another one by now
                out.truncate(0)
                raise RunError(f"{partial} did not belong to {url} and is emptied; give the command again") from error
            raise
        out.flush()
        os.fsync(out.fileno())
        os.replace(partial, file)
