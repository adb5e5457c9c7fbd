"""The commands about long videos: `segment`, `watch`, `calibrate` and `evaluate_timelines`."""

import json
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from omegaconf import MISSING

from ace_dist.config import parse_settings
from ace_dist.utils.errors import ConfigError, DataError, LabelError, RunError, listing
from ace_dist.utils.extras import require
from ace_dist.utils.files import check_is_no_input, check_writable, write_json

if TYPE_CHECKING:
    from ace_dist.segment.timeline import Timeline


@dataclass
class SegmentSettings:
    run: str = MISSING  # a run folder, or an export
    video: list[str] = MISSING  # one or many video files, of any length
    actions: list[str] | None = None  # a list such as '[spin block, hammer pin]'; null: the steps of the procedure
    procedure: str | None = None  # YAML file of the steps that belong to the job, in order
    output: list[str] = field(default_factory=list)  # files; * stands for the video's name, as in 'out/*.json'
    decoder: str | None = None  # argmax | viterbi | transport; null: viterbi with a procedure, else the calibration's
    stride_s: float | None = None  # seconds between windows; null: a quarter of a training clip
    cache: str | None = "auto"  # folder of embeddings, so that other labels need no video; null: keep none
    device: str = "auto"  # auto: a GPU where there is one | cpu | cuda


def segment(argv: list[str]) -> None:
    """Find what a long video shows, and when: `ace segment run=DIR video=FILE actions='[...]'`.

    Any labels, in any words; stretches that none of them fits are "none of these" when the run is calibrated
    (ace calibrate). `output=[FILE.json, FILE.html]` writes files for other programs: .json .csv .vtt .srt
    .eaf (ELAN) .labelstudio.json .html .mp4.
    """
    settings = parse_settings(argv, SegmentSettings)
    from ace_dist.data.run_inputs import check_model_folder

    check_labels("segment", settings)
    check_output_names(settings)
    check_model_folder(Path(settings.run))
    from ace_dist.classifier import Classifier
    from ace_dist.segment.formats import write_timeline
    from ace_dist.segment.procedure import Procedure
    from ace_dist.tools.timelines import cache_folder, progress_bar

    check_outputs(settings)
    procedure = Procedure.load(settings.procedure) if settings.procedure else None
    check_table_labels(settings, procedure.labels if procedure else ())
    classifier = Classifier.load(settings.run, settings.device)
    if not classifier.calibration.is_calibrated:
        print(classifier.calibration.source, flush=True)
    cache, unreadable = cache_folder(settings.cache), list[str]()
    for video in settings.video:
        try:
            with progress_bar(video) as progress:
                timeline = classifier.segment(
                    video,
                    settings.actions,
                    procedure,
                    decoder=settings.decoder,
                    stride_s=settings.stride_s,
                    cache=cache,
                    progress=progress,
                )
            print_timeline(video, timeline)
            for name in settings.output:
                path = Path(name.replace("*", Path(video).stem))
                write_timeline(timeline, path)
                print(f"written: {path}", flush=True)
        except DataError as error:  # of this video alone
            if len(settings.video) == 1:
                raise
            unreadable.append(str(error))
            print(f"{video}: left out", file=sys.stderr, flush=True)
    if unreadable:
        raise DataError(f"{len(unreadable)} of {len(settings.video)} videos were left out:{listing(unreadable)}")


def check_labels(command: str, settings: "SegmentSettings | WatchSettings") -> None:
    if settings.actions is None and settings.procedure is None:
        raise ConfigError(f"{command} needs actions='[...]', or a procedure=FILE whose steps are the labels")


def check_output_names(settings: SegmentSettings) -> None:
    """Raise `ConfigError` where the timeline of one video would replace that of another."""
    if len(settings.video) > 1 and (fixed := [name for name in settings.output if "*" not in name]):
        raise ConfigError(f"output={fixed[0]} is one file for {len(settings.video)} videos; write * for their names")
    stems = [Path(video).stem for video in settings.video]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice and settings.output:
        raise ConfigError(
            f"output={settings.output[0]}: several videos are called {twice!r}, and the last one would replace the "
            f"timelines of the others; give them one by one, each with its own output"
        )


def check_outputs(settings: SegmentSettings) -> None:
    """Raise an error for files that could not be written when the videos are done."""
    from ace_dist.segment.formats import check_output

    for name in settings.output:
        check_output(Path(name))
        for video in settings.video:
            path = Path(name.replace("*", Path(video).stem))
            check_is_no_input(path, *settings.video, settings.procedure)
            check_writable(path)


def check_table_labels(settings: SegmentSettings, steps: Sequence[str]) -> None:
    """Raise `LabelError` for a label that a CSV file could not hold, which has a verb and an object."""
    from ace_dist.concepts.makers import split_label

    if tables := [name for name in settings.output if name.lower().endswith(".csv")]:
        for label in settings.actions or steps:
            try:
                split_label(label)
            except LabelError as error:
                raise LabelError(f"output={tables[0]}: {error}, and a row has both") from error


def print_timeline(video: str, timeline: "Timeline") -> None:
    from ace_dist.segment.timeline import clock

    print(video, timeline.table(), sep="\n")
    for each in timeline.deviations or ():
        when = "" if each.start_s is None else f"{clock(each.start_s)}  "
        print(f"{when}{each.kind}: {each.label} {each.note}", flush=True)


@dataclass
class WatchSettings:
    run: str = MISSING  # a run folder, or an export
    source: str = MISSING  # camera, or its number or device | rtsp://, http:// or tcp:// address | a file | - (a pipe)
    actions: list[str] | None = None  # a list such as '[spin block, hammer pin]'; null: the steps of the procedure
    procedure: str | None = None  # YAML file of the steps that belong to a job, in order; jobs follow one another
    output: str | None = None  # a file that the lines are added to, beside the console
    minimum_s: float | None = None  # how long a label lasts at least, which delays it; null: that of the calibration
    stride_s: float | None = None  # seconds between windows; null: a quarter of a training clip
    realtime: bool = True  # play a file at its own pace, leave out frames when behind; false: every frame, at any pace
    give_up_s: float | None = None  # seconds without a picture after which it ends; null: it tries again for ever
    device: str = "auto"  # auto: a GPU where there is one | cpu | cuda


def watch(argv: list[str]) -> int:
    """Say what a camera or another live stream shows now: `ace watch run=DIR source=camera actions='[...]'`.

    Prints a line of JSON when the label changes and every second: time, label (null: none of these), score, runner-up,
    latency, frames left out. With procedure=FILE also when a job is done, and what is done otherwise. Connects again
    when the stream is lost. Ctrl-C (130) and TERM (143) end it.
    """
    settings = parse_settings(argv, WatchSettings)
    from ace_dist.data.run_inputs import check_model_folder

    check_labels("watch", settings)
    if settings.output:
        check_is_no_input(Path(settings.output), settings.source, settings.procedure)
    check_model_folder(Path(settings.run))
    from ace_dist.classifier import Classifier
    from ace_dist.segment.procedure import Procedure

    procedure = Procedure.load(settings.procedure) if settings.procedure else None
    with ExitStack() as stack:
        stop, received = stack.enter_context(stopped_by_signals())
        file = stack.enter_context(open_log(Path(settings.output))) if settings.output else None
        console = sys.stdout
        stack.enter_context(redirect_stdout(sys.stderr))  # whatever else is said is no line of JSON
        classifier = Classifier.load(settings.run, settings.device)
        if not classifier.calibration.is_calibrated:
            print(classifier.calibration.source, flush=True)
        events = classifier.stream(
            settings.source,
            settings.actions,
            procedure,
            minimum_s=settings.minimum_s,
            stride_s=settings.stride_s,
            realtime=settings.realtime,
            give_up_s=settings.give_up_s,
            stop=stop,
        )
        stack.enter_context(closing(events))
        for event in events:
            for written in filter(None, (console, file)):
                print(event.as_line(), file=written, flush=True)
    return 128 + received[0] if received else 0


def open_log(path: Path) -> TextIO:
    """Adds to a file, in a folder that may be new; before the model is loaded, as it may be refused."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a", encoding="utf-8")


@contextmanager
def stopped_by_signals() -> Iterator[tuple[threading.Event, list[int]]]:
    """An event that Ctrl-C and TERM set, and which of them came; a second one ends the process as it always does."""
    stop = threading.Event()
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        stop.set()
        signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop, received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class CalibrateSettings:
    run: str = MISSING  # a finished run folder
    videos: str | None = None  # annotations of long videos (CSV, or a tool's export), or a folder in MS-TCN's layout
    fold: int | None = None  # of a folder in MS-TCN's layout; null: that of the run
    error_rate: float = 0.1  # share of actions like those of the training that may be called "none of these"
    stride_s: float | None = None  # seconds between windows; null: a quarter of a training clip
    cache: str | None = "auto"  # folder of embeddings; null: keep none
    device: str = "auto"  # auto: a GPU where there is one | cpu | cuda


def calibrate(argv: list[str]) -> None:
    """Teach a run when no label fits, and how to segment: `ace calibrate run=DIR videos=FILE`.

    Uses videos of the training split alone, by the run's fold and test groups, and writes RUN/calibration.json. What is
    not labelled there counts as background. Without `videos` it looks at the run's training clips, which show none.
    """
    settings = parse_settings(argv, CalibrateSettings)
    require("scipy")  # which fits what the videos gave
    from ace_dist.data.run_inputs import run_config

    run_config(Path(settings.run))  # says what is no run, before torch is imported
    from ace_dist.classifier import Classifier
    from ace_dist.segment.segmenter import CALIBRATION
    from ace_dist.tools.timelines import cache_folder, calibrate_on_clips, calibrate_on_long_videos

    run = Path(settings.run)
    check_writable(run / CALIBRATION)
    classifier = Classifier.from_run(run, settings.device)
    if settings.videos is None:
        calibration, known = calibrate_on_clips(classifier, run, settings.error_rate)
        if not known["held_out"]:
            print(
                f"the model trained on these clips, and knows those of other people less: of their actions more than "
                f"error_rate={settings.error_rate:g} will be none of these. Hold people out of the training by "
                "evaluation.validation_share, or give videos="
            )
    else:
        stride_s, cache = settings.stride_s, cache_folder(settings.cache)
        calibration, known = calibrate_on_long_videos(
            classifier, run, settings.videos, settings.error_rate, stride_s, cache, settings.fold
        )
    calibration.save(run, known)
    print(json.dumps(known, indent=1), f"written: {run / CALIBRATION}", sep="\n")


@dataclass
class EvaluateTimelinesSettings:
    run: str = MISSING  # a finished and calibrated run folder
    videos: str = MISSING  # annotations of long videos (CSV, or a tool's export), or a folder in MS-TCN's layout
    fold: int | None = None  # of a folder in MS-TCN's layout: which split is tested; null: that of the run
    procedures: str | None = None  # folder with a NAME.yaml or NAME.json of steps for each video; null: none
    output: str | None = None  # a JSON file; null: RUN/timelines.json
    stride_s: float | None = None  # seconds between windows; null: a quarter of a training clip
    cache: str | None = "auto"  # folder of embeddings; null: keep none
    device: str = "auto"  # auto: a GPU where there is one | cpu | cuda


def evaluate_timelines(argv: list[str]) -> None:
    """Test the segmentation of long videos: `ace timelines run=DIR videos=FOLDER`.

    Base, novel and mixed labels, and the same under other words, by every decoder: frame accuracy, edit score, F1@10,
    25, 50; rejection (AUROC, FPR95); precision and recall of deviations where there are procedures.
    """
    settings = parse_settings(argv, EvaluateTimelinesSettings)
    from ace_dist.data.run_inputs import run_config

    run_config(Path(settings.run))  # says what is no run, before torch is imported
    from ace_dist.classifier import Classifier
    from ace_dist.segment.protocol import TimelineTest, check_procedures, load_procedures, table
    from ace_dist.segment.segmenter import window_similarities
    from ace_dist.tools.timelines import cache_folder, embed_all, read_videos, root_label_sets

    run = Path(settings.run)
    path = Path(settings.output) if settings.output else run / "timelines.json"
    check_is_no_input(path, settings.videos)
    check_writable(path)
    procedures = load_procedures(Path(settings.procedures)) if settings.procedures else {}
    classifier = Classifier.from_run(run, settings.device)
    if not classifier.calibration.is_calibrated:
        raise RunError(f"{run} is not calibrated; first: ace calibrate run={run} videos=...")
    truths = read_videos(settings.videos, "test", classifier.config.dataset, settings.fold)
    sets = root_label_sets(classifier, run)
    if procedures:
        check_procedures(procedures, [truth.path.stem for truth in truths], [*sets.values()][-1][0].labels)
    test = TimelineTest(
        embed_all(classifier, truths, settings.stride_s, cache_folder(settings.cache)),
        lambda videos, labels: window_similarities(classifier.model, videos, labels.phrases),
        classifier.calibration,
        classifier.temperature,
    )
    results = test.evaluate(sets, procedures)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"videos": len(truths), "method": classifier.config.method.name, **results})
    print(table(results), f"written: {path}", sep="\n")
