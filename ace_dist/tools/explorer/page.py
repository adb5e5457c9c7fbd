"""The explorer's page (Gradio): what is asked of `Explorer` when, and how refusals are shown.

An uploaded file is deleted once it was read. Nothing is fetched from or sent to another machine: system fonts, no
analytics, pictures drawn here.
"""

import os
import re
import threading
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr
from fastapi import FastAPI
from gradio.data_classes import FileData

from ace_dist.concepts.actions import normalise
from ace_dist.evaluate.report import concept_layout
from ace_dist.evaluate.run_files import read_run
from ace_dist.tools.explorer import drawing
from ace_dist.tools.explorer.session import Clip, Explorer
from ace_dist.utils.errors import UserError

MOST_VISITORS = 32  # whose clips and words are kept; the oldest go first
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
HELP = (
    "Choose a clip of the test set or upload a video of one action, write the actions to choose between, and untick "
    "or add words to see what changes. A label's probability comes from the mean cosine over its ticked phrases "
    "(ACE Eq. 3)."
)
NO_CLIP = drawing.hint_html("Choose a test clip or upload a video.")
Words = dict[str, list[tuple[str, bool]]]  # label -> its phrases, and whether they vote


class Page:
    """Handlers of the page. A visitor's events change that visitor's state alone; the model answers one at a time."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self.lock = threading.Lock()
        self.presets = explorer.presets()

    def refusal(self, error: UserError) -> str:
        """The message, without the folders of the machine that serves the page."""
        run = self.explorer.run
        text = str(error)
        for folder in (run.resolve(), run.absolute(), run):
            text = text.replace(str(folder), run.resolve().name)
        return drawing.message_html(re.sub(r"(?:(?<=[\s'\"(=])|^)~?/(?:[^\s'\":;,()/]+/)+", "", text))

    def typed_words(self, text: str) -> Words:
        """The typed labels, one a line, each with the phrases of its tree."""
        labels = [line.strip() for line in text.splitlines() if line.strip()]
        return {label: [(p, True) for p in phrases] for label, phrases in self.explorer.synonyms(labels).items()}

    def first_words(self) -> Words:
        """Those of the novel actions, or none where the data set has one action alone."""
        try:
            return self.typed_words("\n".join(self.presets[False]))
        except UserError:
            return {}

    def use_labels(self, text: str, clip: Clip | None, words: Words) -> tuple[Words, str]:
        """New labels: their words, and the look at the present clip; on a refusal a message and the words as before."""
        try:
            words = self.typed_words(text)
        except UserError as error:
            return words, self.refusal(error)
        return words, self.look(clip, words)

    def look(self, clip: Clip | None, words: Words) -> str:
        """The result for a clip and words, or a message."""
        if clip is None:
            return NO_CLIP
        try:
            with self.lock:
                voting = {label: [p for p, on in group if on] for label, group in words.items()}
                return drawing.look_html(self.explorer.look(clip, voting))
        except UserError as error:
            return self.refusal(error)

    def choose(self, key: str, words: Words) -> tuple[Any, ...]:
        """A test clip, among the labels of its own split while the labels are a preset; then also the labels' text."""
        test = next((test for test in self.explorer.tests if test.id == key), None)
        if test and test.action not in words and tuple(words) in self.presets.values():
            words = self.typed_words("\n".join(self.presets[test.base]))
        caption = f"test clip {key}: {test.action} ({'base' if test.base else 'novel'} action)" if test else ""
        return *self.show(lambda: self.explorer.test_clip(key), words, caption), words, "\n".join(words)

    def upload(self, path: str | None, words: Words) -> tuple[Any, ...]:
        """A user's own file: read, then deleted."""
        if path is None:
            return None, "", "", NO_CLIP, ""
        try:
            return self.show(lambda: self.explorer.uploaded(path), words, f"uploaded: {Path(path).name}")
        finally:
            Path(path).unlink(missing_ok=True)

    def show(self, read: Callable[[], Clip], words: Words, caption: str) -> tuple[Any, ...]:
        """Clip state, contact sheet, caption, look, SRT table; on a refusal a message and no clip."""
        try:
            with self.lock:
                clip = read()
                runs = self.explorer.robustness(clip)
        except UserError as error:
            return None, "", "", self.refusal(error), ""
        sheet = drawing.sheet_html(clip.frames)
        return clip, sheet, escape(caption), self.look(clip, words), drawing.robustness_html(runs)

    def maps(self) -> str:
        try:
            space = read_run(self.explorer.run).space
        except UserError as error:
            return self.refusal(error)
        before, after = (concept_layout(rows, space.actions) for rows in (space.before, space.after))
        return drawing.map_svg(before, space, "before training") + drawing.map_svg(after, space, "after training")


def build_page(explorer: Explorer) -> Any:
    page = Page(explorer)
    start, config = page.first_words(), explorer.config
    title = f"{config.method.name} on {config.dataset.name}"
    blocks = gr.Blocks(title=f"ace-dist: {title}", analytics_enabled=False, delete_cache=(600, 600))
    blocks.state_session_capacity = MOST_VISITORS
    with blocks:
        gr.HTML(f"<h2>{escape(title)}</h2><p>{escape(HELP)}</p>")
        clip, words, drawn = gr.State(None), gr.State(start), gr.State(label_phrases(start))
        with gr.Row():
            with gr.Column(min_width=280):
                tests = [(f"{t.action}{'' if t.base else ' (novel)'}: {t.id}", t.id) for t in explorer.tests]
                chosen = gr.Dropdown(tests, value=None, label="A clip of the test set", elem_id="ace-clip")
                uploaded = gr.File(label="... or your own video of one action", elem_id="ace-upload")
                uploaded.preprocess = path_alone
                caption, sheet = gr.HTML(""), gr.HTML("")
                labels = gr.Textbox(
                    "\n".join(start or page.presets[False]),
                    lines=6, label="Actions to choose between, one a line", elem_id="ace-labels",
                )  # fmt: skip
                use = gr.Button("Use these labels", variant="primary", elem_id="ace-use")
            with gr.Column(min_width=280):
                result = gr.HTML(NO_CLIP)
                gr.HTML("<h3>Words that vote</h3>")
                render_words(page, clip, words, drawn, result, blocks)
        with gr.Accordion("The Synonym Robustness Test of this clip", open=False):
            robustness = gr.HTML("")
        with gr.Accordion("The concepts before and after training", open=False) as concepts:
            maps = gr.HTML("")
        shown = [clip, sheet, caption, result, robustness]
        chosen.input(page.choose, [chosen, words], [*shown, words, labels]).then(label_phrases, words, drawn)
        uploaded.upload(page.upload, [uploaded, words], shown)
        use.click(page.use_labels, [labels, clip, words], [words, result]).then(label_phrases, words, drawn)
        concepts.expand(page.maps, None, maps)
    return blocks


def path_alone(file: FileData | None) -> str | None:
    """What `Page.upload` gets; `gr.File` itself leaves an empty temporary file behind for each upload."""
    return None if file is None else file.path


def label_phrases(words: Words) -> dict[str, list[str]]:
    return {label: [phrase for phrase, _ in group] for label, group in words.items()}


def render_words(
    page: Page, clip: gr.State, words: gr.State, drawn: gr.State, result: gr.HTML, blocks: gr.Blocks
) -> None:
    """A group of ticked phrases for each label, and a field that adds one; every change looks again.

    The groups are drawn anew when their phrases change (`drawn`) and not at every tick, which would wipe what somebody
    is typing into a field.
    """

    @gr.render(inputs=words, triggers=[blocks.load, drawn.change])  # type: ignore[untyped-decorator]
    def groups(present: Words) -> None:
        for label, group in present.items():
            ticked = gr.CheckboxGroup(
                [p for p, _ in group], value=[p for p, on in group if on], label=label, interactive=True
            )
            added = gr.Textbox(
                show_label=False, placeholder=f"another phrase for {label}", submit_btn="add", interactive=True
            )

            def tick(voting: list[str], clip: Clip | None, now: Words, label: str = label) -> tuple[Words, str]:
                now = {**now, label: [(p, p in voting) for p, _ in now[label]]}
                return now, page.look(clip, now)

            def add(phrase: str, clip: Clip | None, now: Words, label: str = label) -> tuple[Words, str]:
                phrase = normalise(phrase)
                if phrase and phrase not in [p for p, _ in now[label]]:
                    now = {**now, label: [*now[label], (phrase, True)]}
                return now, page.look(clip, now)

            ticked.input(tick, [ticked, clip, words], [words, result])
            added.submit(add, [added, clip, words], [words, result]).then(label_phrases, words, drawn)


def build_app(blocks: Any, largest_upload_mb: int) -> Any:
    """The page without what Gradio adds by itself: links, run history, a server in Node, and pages of its API."""
    return gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        blocks.queue(api_open=False, max_size=MOST_VISITORS),
        path="/",
        max_file_size=largest_upload_mb << 20,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        show_error=False,
        theme=gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"]),
        css=drawing.STYLE,
    )
