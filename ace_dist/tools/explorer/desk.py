"""What all pages share: the model answers one at a time, and a refusal shows no folder of the server."""

import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData

from ace_dist.tools.explorer.markup import SCRIPT
from ace_dist.utils.errors import UserError


class Desk:
    """The lock of the models of some runs, and their folders."""

    def __init__(self, runs: Sequence[Path]) -> None:
        self.runs = runs
        self.lock = threading.RLock()

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *error: object) -> None:
        self.lock.release()

    def refusal(self, error: UserError) -> str:
        """The message, without the folders of the machine that serves the page."""
        text = str(error)
        for run in self.runs:
            for folder in (run.resolve(), run.absolute(), run):
                text = text.replace(str(folder), run.resolve().name)
        return re.sub(r"(?:(?<=[\s'\"(=])|^)~?/(?:[^\s'\":;,()/]+/)+", "", text)


def part(html: str) -> Any:
    """A part of a page whose buttons ask the server (`asked`)."""
    return gr.HTML(html, js_on_load=SCRIPT, apply_default_css=False)


def upload_button(text: str) -> Any:
    """Gives its handler a path; `gr.UploadButton` itself leaves an empty temporary file behind for each upload."""
    made = gr.UploadButton(text, file_types=["video"], size="sm", elem_classes="ace-upload")
    made.preprocess = path_alone
    return made


def path_alone(file: FileData | None) -> str | None:
    return None if file is None else file.path
