"""The long videos of a calibration or a test: read, embedded, and given the labels of a run."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ace_dist.classifier import Classifier
from ace_dist.concepts import Action, LabelSet, root_labels
from ace_dist.config import DatasetConfig, resolve_path
from ace_dist.data.annotations.csv import COLUMNS, OPTIONAL, numbered_rows
from ace_dist.data.annotations.exports import is_export
from ace_dist.data.annotations.frames import FrameReader
from ace_dist.data.annotations.gtea import subject
from ace_dist.data.datasets import build_reader, regrouped
from ace_dist.data.loader import build_test_loader
from ace_dist.data.run_inputs import read_inputs
from ace_dist.data.sampling import TestPlan
from ace_dist.data.task import load_task
from ace_dist.evaluate.protocols import mean_cosines, srt_label_sets
from ace_dist.segment.calibrate import ScoredVideo, calibrate_on_videos
from ace_dist.segment.embed import EmbeddedVideo, default_cache, embed_video
from ace_dist.segment.labelled import LabelledVideo, in_both_splits, labelled_videos
from ace_dist.segment.rejection import LabelledWindows, fit_rejection
from ace_dist.segment.segmenter import Calibration, window_similarities
from ace_dist.utils.console import Progress
from ace_dist.utils.errors import DataError, RunError, listing

FOLDED = ("mstcn", "gtea")  # kinds of data set in whose folder each fold has its own lists of videos


def cache_folder(cache: str | None) -> Path | None:
    return default_cache() if cache == "auto" else Path(cache) if cache else None


@contextlib.contextmanager
def progress_bar(name: str) -> Iterator[Callable[[float, float], None]]:
    """Of seconds of video, with the time left."""
    with Progress(0, Path(name).name, "second") as shown:

        def show(done_s: float, all_s: float) -> None:
            shown.total = round(max(all_s, done_s))
            shown.update(round(done_s) - shown.done)

        yield show


def read_videos(source: str, split: str, run: DatasetConfig, fold: int | None = None) -> list[LabelledVideo]:
    """The labelled videos of a split, of an annotation file or a folder in MS-TCN's layout. Says what is left out.

    The split is that of the run's data set: where its `test_groups` occur, they are tested and no others; what it left
    out is left out. `fold`: of such a folder; None: that of a run on such data, else the first.
    """
    if not Path(source).exists():
        raise DataError(f"videos={source} does not exist; name an annotation file, or a folder in MS-TCN's layout")
    dataset = videos_dataset(Path(source), run, fold)
    reader = build_reader(dataset)
    segments, recordings = reader.segments(), reader.recordings if isinstance(reader, FrameReader) else ()
    groups = {each.group for each in segments} | {each.group for each in recordings}
    tested = groups.intersection(dataset.test_groups or ())
    split_by = dataset if tested else replace(dataset, test_groups=None)
    segments = regrouped(segments, split_by)
    notes, both = list(reader.notes), in_both_splits(segments)
    if reader.rejected:
        faults = [f"{each.origin}: {each.reason}" for each in reader.rejected]
        notes.append(f"left out, as the run's dataset.allow_quarantine says:{listing(faults)}")
    if both:
        notes.append(f"left out, with segments of the training and of the test:{listing(both)}")
    if notes:
        print(*notes, sep="\n", flush=True)
    if found := labelled_videos(segments, split, regrouped(recordings, split_by)):
        return found
    raise DataError(
        f"videos={source} has no video of the {split} split (a video with segments of both is in neither; "
        f"dataset.test_groups of the run: {', '.join(run.test_groups or ()) or 'as annotated'})"
    )


def videos_dataset(source: Path, run: DatasetConfig, fold: int | None) -> DatasetConfig:
    """The run's data set with its videos at `source`, by a reader of what lies there.

    What depends on the form of the annotations (classes, columns) goes over to annotations of the same form alone.
    """
    kind = "csv"
    if source.is_dir():
        names = [path.stem for path in (source / "groundTruth").glob("*.txt")]
        kind = "gtea" if run.kind == "gtea" and all(map(subject, names)) else "mstcn"
    same = replace(run, kind=kind, shards="", views=None, classes=run.classes if run.kind == kind else None)
    if kind == "csv":
        return replace(same, annotations=str(source), columns=run.columns if needs_columns(source, run) else {})
    if fold is not None:  # which is not that of the run's groups
        same = replace(same, test_groups=[f"S{fold}"] if kind == "gtea" else None)
    return replace(same, root=str(source), columns={}, fold=fold or (run.fold if run.kind in FOLDED else 0) or 1)


def needs_columns(path: Path, run: DatasetConfig) -> bool:
    """Whether a file has the columns of the run's own, and not ours."""
    if run.kind != "csv" or is_export(path):
        return False
    if run.annotations and (own := resolve_path(run.annotations)).exists() and own.samefile(path):
        return True
    with contextlib.suppress(DataError):
        numbered_rows(path, COLUMNS, OPTIONAL)
        return False
    return True


def embed_all(
    classifier: Classifier, truths: list[LabelledVideo], stride_s: float | None, cache: Path | None
) -> list[tuple[LabelledVideo, EmbeddedVideo]]:
    found = []
    for truth in truths:
        with progress_bar(truth.path.name) as progress:
            embedded = embed_video(classifier.model, classifier.config, truth.path, stride_s, cache, progress)
        found.append((truth, embedded))
    return found


def root_label_sets(classifier: Classifier, run: Path) -> dict[str, list[LabelSet]]:
    """Base, novel and mixed labels of a run, each followed by its SRT's label sets."""
    inputs, config, trees = read_inputs(run), classifier.config, classifier.trees
    if inputs["base"] is None:
        raise RunError(f"{run} was written by an earlier version, which kept no classes: train it again")
    parts = {part: tuple(Action(verb, thing) for verb, thing in inputs[part]) for part in ("base", "novel")}
    leaves = config.method.leaf_augmentation
    found = {
        part: [
            root_labels(actions, trees, leaves),
            *srt_label_sets(config, part, actions, trees),
        ]
        for part, actions in parts.items()
        if actions
    }
    if len(found) == 2:
        found["mixed"] = [
            LabelSet(base.labels + novel.labels, base.phrases + novel.phrases)
            for base, novel in zip(found["base"], found["novel"], strict=False)
        ]
    return found


def calibrate_on_long_videos(
    classifier: Classifier,
    run: Path,
    source: str,
    error_rate: float,
    stride_s: float | None,
    cache: Path | None,
    fold: int | None = None,
) -> tuple[Calibration, dict[str, Any]]:
    """On the videos of the training split. `calibrate_on_videos` says what is returned."""
    labels = root_label_sets(classifier, run)["base"][0]
    pairs = embed_all(classifier, read_videos(source, "train", classifier.config.dataset, fold), stride_s, cache)
    cosines = window_similarities(classifier.model, [embedded for _, embedded in pairs], labels.phrases)
    videos = [ScoredVideo(*pair, table_NK) for pair, table_NK in zip(pairs, cosines, strict=True)]
    return calibrate_on_videos(videos, labels.labels, classifier.temperature, error_rate)


@torch.no_grad()
def calibrate_on_clips(classifier: Classifier, run: Path, error_rate: float) -> tuple[Calibration, dict[str, Any]]:
    """On the clips (mean of the views) of the run's validation people, or of its training where none are held out."""
    config, model = classifier.config, classifier.model
    task = load_task(config)
    held = task.validation_clips()
    records, classes = held if held[0] else task.training_clips()
    device = next(model.video.parameters()).device
    model.expect_clips(config.loader)
    loader = build_test_loader(config, device, None)
    plan = TestPlan(records, classes, config.dataset.clip, config.loader, config.evaluation.batch_size)
    views: dict[str, list[torch.Tensor]] = {}
    for batch in loader.stream(plan.batches()):
        for name, row in zip(batch.ids, model.encode_video(batch.video).float().cpu(), strict=True):
            views.setdefault(name, []).append(row)
    loader.close()
    embeddings = torch.stack([torch.stack(views[record.key]).mean(0) for record in records])
    labels = root_label_sets(classifier, run)["base"][0]
    (cosines,) = mean_cosines(model, embeddings, [labels.phrases])
    windows = LabelledWindows(
        embeddings.double().numpy(),
        cosines.double().numpy(),
        np.array(classes, np.int64),
        np.array([record.group for record in records]),
    )
    rejection, known = fit_rejection(windows, error_rate, classifier.temperature)
    return Calibration(rejection=rejection), known | {"clips": len(records), "held_out": bool(held[0])}
