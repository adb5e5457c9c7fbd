"""Timeline: a long video, any labels, and what it shows when; words change it without reading the video again."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from html import escape
from itertools import count
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from ace_dist.segment.formats import FORMS
from ace_dist.segment.page import to_html
from ace_dist.segment.timeline import Timeline
from ace_dist.tools.explorer.desk import Desk, part, upload_button
from ace_dist.tools.explorer.long_videos import LongVideos
from ace_dist.tools.explorer.markup import asked, message_html
from ace_dist.tools.explorer.session import PRESET
from ace_dist.tools.explorer.timeline_html import (
    FRAMES,
    KEEP,
    bar_html,
    file_html,
    keep_html,
    list_html,
    segment_html,
)  # fmt: skip
from ace_dist.tools.explorer.words import Words, added, switched, typed_words, voting
from ace_dist.utils.errors import UserError

PROGRESS = gr.Progress()  # as a default, Gradio gives each event its own


@dataclass(frozen=True)
class TimelineView:
    """What one visitor has before him. `time_s` lies in the segment that is shown, `label` is whose words are."""

    words: Words
    video: str = ""
    timeline: Timeline | None = None
    before: Timeline | None = None
    time_s: float = 0.0
    label: str = ""

    @property
    def segment(self) -> int:
        parts = self.timeline or ()
        return next((i for i, part in enumerate(parts) if part.start_s <= self.time_s < part.end_s), 0)


class TimelinePage:
    def __init__(self, videos: LongVideos, desk: Desk) -> None:
        self.videos, self.desk = videos, desk
        self.numbers = count()

    def opening(self) -> TimelineView:
        splits = self.videos.explorer.splits()
        labels = list(dict.fromkeys(splits[True] + splits[False]))[:PRESET]
        try:
            return TimelineView(typed_words(self.videos.explorer, labels))
        except UserError:
            return TimelineView({})

    def open(self, view: TimelineView, text: str, opener: Callable[[], str]) -> TimelineView:
        """A video, and its timeline under the typed labels. The model of other visitors answers meanwhile."""
        words = self.typed(view, text)
        key = opener()
        return self.at_first_action(replace(view, words=words, video=key, before=None))

    def use_labels(self, view: TimelineView, text: str) -> TimelineView:
        words = self.typed(view, text)
        if not view.video:
            raise UserError("choose or upload a video first")
        return self.at_first_action(replace(view, words=words, before=None))

    def typed(self, view: TimelineView, text: str) -> Words:
        """Labels that stay keep the words that were switched off and added."""
        words = typed_words(self.videos.explorer, text.splitlines())
        return {label: view.words.get(label, group) for label, group in words.items()}

    def at_first_action(self, view: TimelineView) -> TimelineView:
        with self.desk:
            timeline = self.videos.timeline(view.video, voting(view.words))
        first = next(timeline.actions, timeline[0])
        label = first.label or timeline.labels[0]
        return replace(view, timeline=timeline, time_s=(first.start_s + first.end_s) / 2, label=label)

    def press(self, view: TimelineView, do: str, value: str) -> TimelineView:
        """What a button of the timeline asks for."""
        if view.timeline is None:
            raise UserError("choose or upload a video first")
        if do == "segment":
            number = int(value) if value.isdecimal() and len(value) < 9 else 0
            chosen = view.timeline[min(number, len(view.timeline) - 1)]
            label = chosen.label or chosen.runner_up or view.label
            return replace(view, time_s=(chosen.start_s + chosen.end_s) / 2, label=label)
        if do == "label":
            return replace(view, label=value) if value in view.words else view
        if do in ("word", "add"):
            change = switched if do == "word" else added
            words = change(view.words, view.label, value)
            return replace(
                view, words=words, before=view.timeline, timeline=self.videos.timeline(view.video, voting(words))
            )
        raise UserError("the page has no such button: load it again")

    def file(self, view: TimelineView, ending: str) -> str:
        """The timeline as a file that the page's script saves."""
        form = FORMS.get(ending) if ending in KEEP else None
        if view.timeline is None or form is None:
            raise UserError("there is no such file; open a video first")
        video = self.videos.video(view.video)
        text = to_html(view.timeline, video.stills) if ending == ".html" else form(view.timeline)
        return file_html(f"{Path(video.name).stem}{ending}", text, next(self.numbers))

    def html(self, view: TimelineView) -> str:
        timeline = view.timeline
        if timeline is None:
            return '<div class="ace"><p>Choose or upload a video: its timeline appears here.</p></div>'
        video, shown = self.videos.video(view.video), timeline[view.segment]
        times = np.linspace(shown.start_s, shown.end_s, FRAMES + 2)[1:-1].tolist()
        group = [phrase for phrase, _ in view.words[view.label]]
        votes = self.videos.votes(view.video, shown.start_s, shown.end_s, group)
        segment = segment_html(timeline, view.segment, video.stills(times), view.label, view.words, votes)
        calibration = self.videos.explorer.classifier.calibration
        note = "" if calibration.is_calibrated else self.uncalibrated()
        return (
            f'<div class="ace" id="ace-timeline">{note}{bar_html(timeline, view.segment, view.before)}{keep_html()}'
            f'<div class="ace-two">{segment}{list_html(timeline, view.segment)}</div></div>'
        )

    def uncalibrated(self) -> str:
        run = escape(shlex.quote(str(self.videos.explorer.run)))
        return (
            '<p class="ace-doubt">This run is not calibrated, so no stretch is "none of these": every moment gets the '
            f"nearest label. Calibrate it with <code>ace calibrate run={run}</code>.</p>"
        )


def build_timeline_page(page: TimelinePage) -> None:
    """The components, within a tab."""
    opening = page.opening()
    state = gr.State(opening)
    gr.HTML(
        '<div class="ace"><h2>What a long video shows, and when</h2><p class="quiet">A working day is cut into the '
        "labels that you write, and into what none of them fits. An upload is deleted once it was read.</p></div>",
        apply_default_css=False,
    )
    with gr.Row(equal_height=False):
        with gr.Column(min_width=280):
            names = [*page.videos.offered]
            offered = gr.Dropdown(names, value=None, label="A video of this machine", visible=bool(names))
            uploaded = upload_button("Upload a long video")
        with gr.Column(min_width=280):
            labels = gr.Textbox("\n".join(opening.words), lines=4, max_lines=8, label="Labels to find, one a line")
            use = gr.Button("Find these labels", variant="primary", size="sm", elem_classes="ace-left")
    result = part(page.html(opening))
    message, saved = gr.HTML("", apply_default_css=False), part("")
    shown = [state, result, message, saved]

    def show(view: TimelineView, change: Callable[[], TimelineView]) -> tuple[Any, ...]:
        """The page after a change; after a refusal as it was, with a message."""
        try:
            changed = change()
            with page.desk:
                return changed, page.html(changed), "", ""
        except UserError as error:
            return view, gr.skip(), message_html(page.desk.refusal(error)), ""

    def press(view: TimelineView, event: gr.EventData) -> tuple[Any, ...]:
        with page.desk:
            try:
                do, value = asked(event._data)
                if do == "keep":
                    return gr.skip(), gr.skip(), "", page.file(view, value)
            except UserError as error:
                return gr.skip(), gr.skip(), message_html(page.desk.refusal(error)), ""
            return show(view, lambda: page.press(view, do, value))

    def choose(name: str, view: TimelineView, text: str, shown: Any = PROGRESS) -> tuple[Any, ...]:
        return show(view, lambda: page.open(view, text, lambda: page.videos.open_offered(name, watch(shown))))

    def upload(path: str | None, view: TimelineView, text: str, shown: Any = PROGRESS) -> tuple[Any, ...]:
        if path is None:
            return gr.skip(), gr.skip(), "", ""
        return show(view, lambda: page.open(view, text, lambda: page.videos.open_upload(path, watch(shown))))

    result.select(press, [state], shown, show_progress="hidden")
    reading = {"concurrency_id": "reading", "show_progress_on": result}  # one video at a time
    offered.input(choose, [offered, state, labels], shown, **reading)
    uploaded.upload(upload, [uploaded, state, labels], shown, **reading)
    use.click(lambda view, text: show(view, lambda: page.use_labels(view, text)), [state, labels], shown)


def watch(shown: Any) -> Callable[[float, float], None]:
    """Gradio's progress, told by seconds of video."""
    return lambda done_s, all_s: shown(min(done_s / max(all_s, 1e-9), 1.0), desc="reading the video")
