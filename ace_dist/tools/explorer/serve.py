"""Serves the explorer's page on the loopback address, its temporary files in a private folder."""

import contextlib
import os
import secrets
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ace_dist.utils.errors import UserError
from ace_dist.utils.files import private_folder

HOST = "127.0.0.1"


@contextlib.contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Uploads, and whatever libraries write, go to `folder`; afterwards to where they went before."""
    before = {name: os.environ.get(name) for name in ("GRADIO_TEMP_DIR", "TMPDIR")}
    default = tempfile.tempdir
    os.environ["GRADIO_TEMP_DIR"] = os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = default
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def measure(explorer: Any, ended: threading.Event) -> None:
    """While the page is already there: what is usual for base clips, by which it says "none of these"."""
    try:
        explorer.measure_floor(ended)
    except UserError as error:
        print(f"the cosines of base clips are not known: {error}", flush=True)


def serve(
    runs: Sequence[Path],
    port: int,
    device: str,
    largest_upload_mb: int,
    token: bool,
    shards: str | None,
    videos: str | None,
) -> None:
    """Serve the page on the loopback address until Ctrl-C or SIGTERM. Raises `UserError` when the port is taken.

    `runs`: one, or two that are compared. `videos`: a folder of long videos that the page offers.
    """
    with socket.socket() as listener, private_folder("ace-explorer-") as folder, temporary_files_in(folder):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise UserError(f"port {port} of {HOST} cannot be used ({error}); choose another with port=...") from error
        # Libraries keep the place of temporary files from their import on; so the page is imported afterwards.
        from ace_dist.tools.explorer.guard import Guard
        from ace_dist.tools.explorer.long_videos import offered_videos
        from ace_dist.tools.explorer.page import build_app, build_page
        from ace_dist.tools.explorer.session import Explorer

        secret = secrets.token_urlsafe(24) if token else ""
        offered, explorers = offered_videos(videos), [Explorer(run, device, shards) for run in runs]
        page = build_app(build_page(explorers, offered), largest_upload_mb)
        ended = threading.Event()
        measuring = [threading.Thread(target=measure, args=(explorer, ended)) for explorer in explorers]
        app = Guard(page, folder, largest_upload_mb, secret)
        import uvicorn  # comes with gradio, whose absence the page's import explains

        settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, server_header=False)
        address = f"http://{HOST}:{port}{f'/?token={secret}' if token else ''}"
        listener.listen()  # who opens the address at once waits for the page and is not refused
        for thread in measuring:
            thread.start()
        try:
            print(f"open {address} in a browser of this machine; Ctrl-C ends it", flush=True)
            uvicorn.Server(settings).run(sockets=[listener])
        finally:  # torch aborts a process that ends while another thread computes
            ended.set()
            for thread in measuring:
                thread.join()
