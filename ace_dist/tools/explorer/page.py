"""The explorer's page (Gradio): what is asked of `Explorer` when, and how refusals are shown.

The page is served on the loopback address. An uploaded file is deleted as soon as it was read. Nothing is fetched from
or sent to another machine: system fonts, no analytics, pictures drawn here.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

from ace_dist.utils.errors import UserError

try:
    import gradio as gr
except ImportError as missing:
    raise UserError("the explorer needs gradio, which is not installed: pip install 'ace-dist[explore]'") from missing

from ace_dist.concepts.actions import normalise
from ace_dist.evaluate.report import concept_layout
from ace_dist.evaluate.run_files import read_run
from ace_dist.tools.explorer import drawing
from ace_dist.tools.explorer.session import Clip, Explorer
from ace_dist.utils.text import markdown

HOST = "127.0.0.1"
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
HELP = (
    "Choose a clip of the test set or upload a video of one action, write the actions to choose between, and untick "
    "or add words to see what changes. A label's probability comes from the mean cosine over its ticked phrases "
    "(ACE Eq. 3)."
)
NO_CLIP = drawing.message_html("choose a test clip or upload a video first")
Words = dict[str, list[tuple[str, bool]]]  # label -> its phrases, and whether they vote


class Page:
    """Handlers of the page. A visitor's events change that visitor's state alone; the model answers one at a time."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self.lock = threading.Lock()

    def typed_words(self, text: str) -> Words:
        """The typed labels, one a line, each with the phrases of its tree."""
        labels = [line.strip() for line in text.splitlines() if line.strip()]
        return {label: [(p, True) for p in phrases] for label, phrases in self.explorer.synonyms(labels).items()}

    def use_labels(self, text: str, clip: Clip | None) -> tuple[Words | None, str]:
        """New labels: their words, and the look at the present clip."""
        try:
            words = self.typed_words(text)
        except UserError as error:
            return None, drawing.message_html(str(error))
        return words, self.look(clip, words)

    def look(self, clip: Clip | None, words: Words | None) -> str:
        """The result for a clip and words, or a message."""
        if clip is None:
            return NO_CLIP
        if words is None:
            return drawing.message_html("write the labels first, one a line")
        try:
            with self.lock:
                voting = {label: [p for p, on in group if on] for label, group in words.items()}
                return drawing.look_html(self.explorer.look(clip, voting))
        except UserError as error:
            return drawing.message_html(str(error))

    def choose(self, key: str, words: Words | None) -> tuple[Any, ...]:
        test = next(test for test in self.explorer.tests if test.id == key)
        caption = markdown(f"test clip {key}: {test.action} ({'base' if test.base else 'novel'} action)")
        return self.show(lambda: self.explorer.test_clip(key), words, caption)

    def upload(self, path: str | None, words: Words | None) -> tuple[Any, ...]:
        """A user's own file: read, then deleted."""
        if path is None:
            return None, None, "", NO_CLIP, ""
        try:
            return self.show(lambda: self.explorer.uploaded(path), words, markdown(f"uploaded: {Path(path).name}"))
        finally:
            Path(path).unlink(missing_ok=True)

    def show(self, read: Callable[[], Clip], words: Words | None, caption: str) -> tuple[Any, ...]:
        """Clip state, contact sheet, caption, look, SRT table; on a refusal a message and no clip."""
        try:
            with self.lock:
                clip = read()
                runs = self.explorer.robustness(clip)
        except UserError as error:
            return None, None, "", drawing.message_html(str(error)), ""
        return clip, drawing.contact_sheet(clip.frames), caption, self.look(clip, words), drawing.robustness_html(runs)

    def maps(self) -> str:
        try:
            space = read_run(self.explorer.run).space
        except UserError as error:
            return drawing.message_html(str(error))
        before, after = (concept_layout(rows, space.actions) for rows in (space.before, space.after))
        return drawing.map_svg(before, space, "before training") + drawing.map_svg(after, space, "after training")


def build_page(explorer: Explorer) -> Any:
    page = Page(explorer)
    classes = explorer.task.classes
    start = page.typed_words("\n".join(map(str, classes.novel or classes.base)))
    with gr.Blocks(title=f"ace-dist: {explorer.run}", analytics_enabled=False, delete_cache=(600, 600)) as blocks:
        gr.Markdown(f"## {markdown(explorer.config.method.name)} on {markdown(explorer.config.dataset.name)}\n{HELP}")
        clip, words, drawn = gr.State(None), gr.State(start), gr.State(label_phrases(start))
        with gr.Row():
            with gr.Column(min_width=280):
                tests = [(f"{t.action}{'' if t.base else ' (novel)'}: {t.id}", t.id) for t in explorer.tests]
                chosen = gr.Dropdown(tests, value=None, label="A clip of the test set", elem_id="ace-clip")
                uploaded = gr.File(label="... or your own video of one action", elem_id="ace-upload")
                caption = gr.Markdown("")
                sheet = gr.Image(label="What the model saw", interactive=False, show_label=True, buttons=[])
                labels = gr.Textbox(
                    "\n".join(start), lines=6, label="Actions to choose between, one a line", elem_id="ace-labels"
                )
                use = gr.Button("Use these labels", variant="primary", elem_id="ace-use")
            with gr.Column(min_width=280):
                result = gr.HTML(NO_CLIP)
                gr.Markdown("### Words that vote")
                render_words(page, clip, words, drawn, result, blocks)
        with gr.Accordion("The Synonym Robustness Test of this clip", open=False):
            robustness = gr.HTML("")
        with gr.Accordion("The concepts before and after training", open=False) as concepts:
            maps = gr.HTML("")
        shown = [clip, sheet, caption, result, robustness]
        chosen.input(page.choose, [chosen, words], shown)
        uploaded.upload(page.upload, [uploaded, words], shown)
        use.click(page.use_labels, [labels, clip], [words, result]).then(label_phrases, words, drawn)
        concepts.expand(page.maps, None, maps)
    return blocks


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
    def groups(present: Words | None) -> None:
        for label, group in (present or {}).items():
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


def serve(run: Path, port: int, device: str, largest_upload_mb: int, shards: str | None = None) -> None:
    """Serve the page on the loopback address until Ctrl-C. Raises `UserError` when the port is taken."""
    blocks = build_page(Explorer(run, device, shards))
    try:
        blocks.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            quiet=True,  # its lines advise a public link
            prevent_thread_lock=True,
            max_file_size=f"{largest_upload_mb}mb",
            footer_links=[],
            theme=gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"]),
            css=drawing.STYLE,
        )
    except OSError as error:
        raise UserError(f"port {port} of {HOST} cannot be used ({error}); choose another with port=...") from error
    print(f"open http://{HOST}:{port} in a browser of this machine; Ctrl-C ends it", flush=True)
    blocks.block_thread()
