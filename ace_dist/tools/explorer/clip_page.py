"""Clips: a clip of the test people or an upload, the labels to choose between, and how each word votes.

With two runs the same clip and the same words are asked of both, side by side.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ace_dist.tools.explorer import answer
from ace_dist.tools.explorer.desk import Desk, part, upload_button
from ace_dist.tools.explorer.gallery import Shelf, gallery_html
from ace_dist.tools.explorer.markup import asked, button, message_html
from ace_dist.tools.explorer.session import Clip, Explorer, Look, TestClip
from ace_dist.tools.explorer.words import Words, added, switched, typed_words, voting
from ace_dist.utils.errors import UserError


@dataclass(frozen=True)
class View:
    """What one visitor has before him. `clips`: the clip as each run sees it; `test`: which it is, None for an upload.

    `label`: whose words are shown, None for the most probable one. `preset`: the labels are those of the page, which
    follow the clip.
    """

    words: Words
    preset: bool = True
    clips: tuple[Clip, ...] = ()
    test: TestClip | None = None
    upload: str = ""
    label: str | None = None
    every: bool = False
    robustness: bool = False
    shelf: Shelf = field(default_factory=Shelf)


class ClipPage:
    """Handlers. A visitor's events change that visitor's view alone; a refusal leaves it as it was."""

    def __init__(self, explorers: Sequence[Explorer], desk: Desk) -> None:
        self.explorers, self.desk = explorers, desk
        self.first = explorers[0]
        shared = set.intersection(*({test.id for test in explorer.tests} for explorer in explorers))
        self.tests = [test for test in self.first.tests if test.id in shared]

    def opening(self) -> View:
        """A clip of a novel action, already answered; no clip where the test split has none."""
        tests = sorted(self.tests, key=lambda test: test.base)
        if not tests:
            return View(self.preset_words(False, None))
        return self.choose(View({}), tests[0].id)

    def preset_words(self, base: bool, action: str | None) -> Words:
        """Of the clip's split, or none where the data set has one action alone."""
        try:
            return typed_words(self.first, self.first.preset(base, action))
        except UserError:
            return {}

    def choose(self, view: View, key: str) -> View:
        """A test clip; preset labels become those of its split."""
        test = next((test for test in self.tests if test.id == key), None)
        if test is None:
            raise UserError(f"the test split has no clip {key!r}; choose one of the list")
        clips = tuple(explorer.test_clip(key) for explorer in self.explorers)
        words = view.words
        if view.preset and test.action not in words:
            words = self.preset_words(test.base, test.action)
        return replace(view, words=words, clips=clips, test=test, upload="", label=None, robustness=False)

    def upload(self, view: View, path: str) -> View:
        """A user's own file: read, then deleted."""
        try:
            clips = tuple(explorer.uploaded(path) for explorer in self.explorers)
        finally:
            Path(path).unlink(missing_ok=True)
        return replace(view, clips=clips, test=None, upload=Path(path).name, label=None, robustness=False)

    def use_labels(self, view: View, text: str) -> View:
        words = typed_words(self.first, text.splitlines())
        self.looks(replace(view, words=words))
        return replace(view, words=words, preset=False, label=None)

    def press(self, view: View, do: str, value: str) -> View:
        """What a button of the answer or the gallery asks for."""
        presses: dict[str, Callable[[], View]] = {
            "clip": lambda: self.choose(view, value),
            "label": lambda: replace(view, label=value) if value in view.words else view,
            "word": lambda: self.change_words(view, switched, value),
            "add": lambda: self.change_words(view, added, value),
            "every": lambda: replace(view, every=True),
            "robustness": lambda: replace(view, robustness=True),
            "action": lambda: replace(view, shelf=Shelf(value)),
            "shelf": lambda: replace(view, shelf=Shelf(view.shelf.action, int(value) if value.isdecimal() else 0)),
        }
        if do not in presses:
            raise UserError("the page has no such button: load it again")
        changed = presses[do]()
        self.looks(changed)  # refuses words that cannot be compared
        return changed

    def change_words(self, view: View, change: Callable[[Words, str, str], Words], phrase: str) -> View:
        """Of the label that is shown, which stays in sight when the ranking changes."""
        label = self.shown_label(view)
        return replace(view, words=change(view.words, label, phrase), label=label)

    def looks(self, view: View) -> list[Look]:
        pairs = zip(self.explorers, view.clips, strict=False)
        return [explorer.look(clip, voting(view.words)) for explorer, clip in pairs] if view.words else []

    def shown_label(self, view: View, looks: Sequence[Look] | None = None) -> str:
        """Whose words are shown. `looks`: of the view, where they are known."""
        if view.label is not None and view.label in view.words:
            return view.label
        looks = self.looks(view) if looks is None else looks
        return looks[0].labels[0].label if looks else next(iter(view.words), "")

    # ---------------------------------------------------------------------------------------------------- as HTML
    def gallery(self, view: View) -> str:
        return gallery_html(self.tests, self.first.still, view.shelf, view.test.id if view.test else None)

    def answer(self, view: View) -> str:
        looks = self.looks(view)
        if not looks:
            what = (
                "a clip or upload a video of one action" if view.words else "labels: write at least two of them below"
            )
            return f'<div class="ace"><p>Choose {what}.</p></div>'
        shown, truth = self.shown_label(view, looks), view.test.action if view.test else None
        runs = "".join(self.run_html(k, look, shown, truth, view.every) for k, look in enumerate(looks))
        more = self.robustness(view) if len(looks) == 1 else ""
        words = answer.words_html(shown, view.words, looks)
        two, place = (" two", "ace-both") if len(self.explorers) > 1 else ("", "ace-look")
        parts = answer.clip_html(view.clips[0], self.caption(view)), answer.frames_html(view.clips[0].frames)
        return (
            f'<div class="ace ace-answer{two}" id="{place}">{parts[0]}<div class="ace-run{two}">{runs}{words}</div>'
            f"{parts[1]}</div>{more}"
        )

    def run_html(self, number: int, look: Look, shown: str, truth: str | None, every: bool) -> str:
        explorer = self.explorers[number]
        name = f"<h3>{escape(explorer.name)}</h3>" if len(self.explorers) > 1 else ""
        error_rate = explorer.classifier.calibration.rejection.error_rate
        verdict = answer.verdict_html(look, error_rate, truth)
        return f'<section class="ace-one">{name}{verdict}{answer.bars_html(look, shown, truth, every)}</section>'

    def caption(self, view: View) -> str:
        if view.test is None:
            return f"Your video <b>{escape(view.upload)}</b>"
        return f"Shows <b>{escape(view.test.action)}</b><br>{answer.kind_html(view.test.base)}"

    def robustness(self, view: View) -> str:
        """The label sets of the robustness test, or the button that asks for them."""
        if not view.robustness:
            asks = button("Ask under the label sets of the Synonym Robustness Test", "robustness", "1")
            return f'<p class="ace ace-more">{asks}</p>'
        base = view.test.base if view.test else not self.first.task.classes.novel
        runs, classes = self.first.robustness(view.clips[0], base)
        truth = view.test.action if view.test else None
        return f'<div class="ace ace-more">{answer.robustness_html(runs, classes, truth)}</div>'


def build_clip_page(page: ClipPage) -> None:
    """The components, within a tab."""
    opening = page.opening()
    state = gr.State(opening)
    gallery = part(page.gallery(opening))
    uploaded = upload_button("Upload your own video of one action")
    result = part(page.answer(opening))
    labels = gr.Textbox("\n".join(opening.words), lines=6, label="Actions to choose between, one a line")
    use = gr.Button("Use these labels", variant="primary", size="sm", elem_classes="ace-left")
    message = gr.HTML("", apply_default_css=False)
    shown = [state, gallery, result, labels, message]

    def show(view: View, text: str, change: Callable[[], View]) -> tuple[Any, ...]:
        """The page after a change; after a refusal as it was, with a message."""
        with page.desk:
            try:
                changed, said = change(), ""
                pages = page.gallery(changed), page.answer(changed)
            except UserError as error:
                changed, said = view, page.desk.refusal(error)
                pages = page.gallery(view), page.answer(view)
            text = "\n".join(changed.words) if changed.preset else text
            return changed, *pages, text, message_html(said)

    def press(view: View, text: str, event: gr.EventData) -> tuple[Any, ...]:
        return show(view, text, lambda: page.press(view, *asked(event._data)))

    for asking in (gallery, result):
        asking.select(press, [state, labels], shown, show_progress="hidden")
    uploaded.upload(
        lambda path, view, text: show(view, text, lambda: page.upload(view, path) if path else view),
        [uploaded, state, labels], shown,
    )  # fmt: skip
    use.click(lambda view, text: show(view, text, lambda: page.use_labels(view, text)), [state, labels], shown)
