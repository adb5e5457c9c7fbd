"""Do decoders beat the best label of each window on long videos, in seen, unseen and other words?

Collects `ace timelines` of many runs into `runs.csv` and tables with intervals, `tables.md`, of `results/segmentation`:

    python benchmarks/segmentation_study.py RUN... [output=FOLDER]

Which runs, and what the intervals are: `results/segmentation/README.md`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ace_dist.evaluate.run_files import read_results
from ace_dist.segment.segmenter import CALIBRATION
from ace_dist.utils.errors import RunError
from ace_dist.utils.files import write_text
from ace_dist.utils.reading import read_object
from ace_dist.utils.tables import csv_text

RESULTS = Path(__file__).parent / "results" / "segmentation"
DRAWS, LEVEL = 10_000, 0.95
PARTS, DECODERS = ("base", "novel", "mixed"), ("argmax", "viterbi", "transport")
SCORES = ("accuracy", "accuracy_without_background", "edit", "f1@10", "f1@25", "f1@50")
COLUMNS = ("method", "seed", "labels", "words", "decoder", "rejection", "chosen", *SCORES)
Counts = NDArray[np.float64]
Score = Callable[[Counts], NDArray[np.float64]]


@dataclass(frozen=True)
class StudiedRun:
    method: str
    seed: int
    chosen: str  # the decoder that the calibration chose
    timelines: Mapping[str, Any]


Side = tuple[Sequence[StudiedRun], str | None]  # runs, and the decoder of all, or the one that each chose


# --------------------------------------------------------------------------------------------------------- the rows
def load_run(folder: Path) -> StudiedRun:
    results = read_results(folder)
    for name in (CALIBRATION, "timelines.json"):
        if not (folder / name).is_file():
            raise RunError(f"{folder} has no {name}; first: ace calibrate, then ace timelines")
    chosen = read_object(folder / CALIBRATION, RunError)["decoder"]["name"]
    method = folder.name.rsplit("-", 1)[0]  # zero_shot is procvlr without a step
    return StudiedRun(method, results["seed"], chosen, read_object(folder / "timelines.json", RunError))


def rows(run: StudiedRun) -> list[list[object]]:
    """A line for each set of labels, words and decoder, in the order of `COLUMNS`."""
    found: list[list[object]] = []

    def add(part: str, words: str, decoder: str, rejection: str, scores: Mapping[str, Any]) -> None:
        chosen = "yes" if decoder == run.chosen else ""
        numbers = ["" if scores[name] is None else f"{scores[name]:.3f}" for name in SCORES]  # no label was shown
        found.append([run.method, run.seed, part, words, decoder, rejection, chosen, *numbers])

    for part in PARTS:
        results = run.timelines[part]
        for name, scores in results["decoders"].items():
            add(part, "true", name, "yes", scores)
            for kind in ("mean", "std"):
                other = {score: scores["other_words"][score][kind] for score in SCORES}
                add(part, f"other, {kind}", name, "yes", other)
            add(part, "true", name, "no", results["without_rejection"][name])
        add(part, "true", "training-free", "no", results["training_free"])
    return found


# ---------------------------------------------------------------------------------------------------- the intervals
def f1(counts: Counts) -> NDArray[np.float64]:
    """F1@50 of segments that were hit, falsely found and missed [..., 4] (edit score first)."""
    hits, false, missed = (counts[..., i] for i in (1, 2, 3))
    return share(2 * hits, 2 * hits + false + missed)


def edit(counts: Counts) -> NDArray[np.float64]:
    return counts[..., 0]


def precision(counts: Counts) -> NDArray[np.float64]:
    """Of deviations found, true, and both [..., 3]; 0 where none is found."""
    return share(counts[..., 2], counts[..., 0])


def recall(counts: Counts) -> NDArray[np.float64]:
    return share(counts[..., 2], counts[..., 1])


def share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """In percent; counts may be means of a video, below 1."""
    return 100 * part / np.where(whole > 0, whole, 1)


@dataclass(frozen=True)
class Draws:
    """How often each seed [draws, S] and each video [draws, V] was drawn; the first draw has every one once."""

    seeds: NDArray[np.float64]
    videos: NDArray[np.float64]

    @classmethod
    def build(cls, seeds: int, videos: int) -> Draws:
        rng = np.random.default_rng(0)
        tables = [
            np.concatenate([np.ones((1, n)), rng.multinomial(n, np.full(n, 1 / n), DRAWS)]) for n in (seeds, videos)
        ]
        return cls(*tables)

    def scores(self, tables: Counts, score: Score) -> NDArray[np.float64]:
        """A score of every draw, the mean over its seeds, from counts [S, W, V, C] of seeds, words, videos."""
        drawn = np.einsum("dv,swvc->dswc", self.videos, tables) / self.videos.sum(1)[0]
        return np.asarray((self.seeds * score(drawn).mean(2)).sum(1) / self.seeds.sum(1))


def cell(draws: NDArray[np.float64], sign: str = "") -> str:
    """The score itself and its percentile interval; in bold where the interval of a difference does not hold 0."""
    low, high = np.quantile(draws[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    text = f"{draws[0]:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"
    return f"**{text}**" if sign and (low > 0 or high < 0) else text


def counts(runs: Sequence[StudiedRun], find: Callable[[StudiedRun], Any]) -> Counts:
    """[S, W, V, C]; `find` gives [W, V, C] of a run."""
    return np.array([find(run) for run in runs], np.float64)


def in_words(part: str, decoder: str | None, other: bool) -> Callable[[StudiedRun], Any]:
    """The videos of a part's decoder (None: the chosen one) by the true labels, or by each set of other words."""

    def find(run: StudiedRun) -> Any:
        scores = run.timelines[part]["decoders"][decoder or run.chosen]
        return scores["other_words"]["videos"] if other else [scores["videos"]]

    return find


def differences(draws: Draws, part: str, ours: Side, theirs: Side) -> list[str]:
    """One side minus the other: F1@50 and edit score, each by the true labels and in other words."""
    cells = []
    for score in (f1, edit):
        for other in (False, True):
            sides = [counts(runs, in_words(part, decoder, other)) for runs, decoder in (ours, theirs)]
            cells.append(cell(draws.scores(sides[0], score) - draws.scores(sides[1], score), "+"))
    return cells


# ----------------------------------------------------------------------------------------------------------- tables
def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *body]] + [""]


def decoder_table(groups: Mapping[str, Sequence[StudiedRun]], videos: int) -> list[str]:
    body = []
    for method, runs in groups.items():
        draws = Draws.build(len(runs), videos)
        for part in PARTS:
            for decoder in DECODERS:
                times = sum(run.chosen == decoder for run in runs)
                cells = [
                    cell(draws.scores(counts(runs, in_words(part, decoder, other)), score))
                    for score in (f1, edit)
                    for other in (False, True)
                ]
                body.append([method, part, f"{decoder} ({times})", *cells])
    header = ["row", "labels", "decoder (times chosen)", "F1@50", "... other words", "edit", "... other words"]
    return ["## Decoders", "", *markdown(header, body)]


def gain_table(groups: Mapping[str, Sequence[StudiedRun]], videos: int) -> list[str]:
    """Decoders minus arg max, and the chosen decoder minus the training-free way."""
    body = []
    for method, runs in groups.items():
        draws = Draws.build(len(runs), videos)
        for part in PARTS:
            for name, decoder in (("chosen", None), ("viterbi", "viterbi"), ("transport", "transport")):
                cells = differences(draws, part, (runs, decoder), (runs, "argmax"))
                body.append([method, part, f"{name} - argmax", *cells])
            free = counts(runs, lambda run, part=part: [run.timelines[part]["training_free"]["videos"]])
            chosen = counts(runs, in_words(part, None, False))
            by_score = [cell(draws.scores(chosen, score) - draws.scores(free, score), "+") for score in (f1, edit)]
            body.append([method, part, "chosen - training-free way", by_score[0], "", by_score[1], ""])
    header = ["row", "labels", "difference", "F1@50", "... other words", "edit", "... other words"]
    return ["## Differences between decoders", "", *markdown(header, body)]


def method_table(groups: Mapping[str, Sequence[StudiedRun]], videos: int) -> list[str]:
    """ACE minus each other row, over the seeds that both have, each with its chosen decoder."""
    ace, body = {run.seed: run for run in groups.get("ace", ())}, []
    for method, runs in groups.items():
        paired = [(ace[run.seed], run) for run in runs if run.seed in ace]
        if method == "ace" or not paired:
            continue
        draws, (ours, theirs) = Draws.build(len(paired), videos), zip(*paired, strict=True)
        for part in PARTS:
            cells = differences(draws, part, (ours, None), (theirs, None))
            body.append([f"ace - {method}", part, str(len(paired)), *cells])
    header = ["difference", "labels", "seeds", "F1@50", "... other words", "edit", "... other words"]
    return ["## ACE against the other rows", "", *markdown(header, body)]


def rejection_table(groups: Mapping[str, Sequence[StudiedRun]], videos: int) -> list[str]:
    body = []
    for method, runs in groups.items():
        draws = Draws.build(len(runs), videos)
        for part in PARTS:
            rejection = [run.timelines[part]["rejection"] for run in runs]
            if None in rejection:  # no video shows one of these labels
                body.append([method, part, *"-----"])
                continue
            with_it = [run.timelines[part]["decoders"][run.chosen] for run in runs]
            without = [run.timelines[part]["without_rejection"][run.chosen] for run in runs]
            name = "accuracy_without_background"
            lost = np.mean([b[name] - a[name] for a, b in zip(with_it, without, strict=True)])
            plain = draws.scores(counts(runs, in_words(part, None, False)), f1)
            open_ended = draws.scores(
                counts(runs, lambda run, part=part: [run.timelines[part]["without_rejection"][run.chosen]["videos"]]),
                f1,
            )
            known = np.mean([each["known_rejected"] for each in rejection])
            others = [
                " / ".join(f"{np.mean([each[kind][key] for each in rejection]):.1f}" for key in ("auroc", "rejected"))
                if all(kind in each for each in rejection)
                else "-"
                for kind in ("pause", "other")
            ]
            body.append([method, part, f"{known:.1f}", *others, f"{lost:.1f}", cell(plain - open_ended, "+")])
    header = ["row", "labels", "known windows rejected, %", "pauses: AUROC / rejected, %"]
    header += ["other actions: AUROC / rejected, %", "accuracy lost on frames of actions", "F1@50 gained"]
    return ["## What rejection costs and brings (chosen decoder)", "", *markdown(header, body)]


def deviation_table(groups: Mapping[str, Sequence[StudiedRun]], videos: int) -> list[str]:
    body = []
    for method, runs in groups.items():
        for way in (*DECODERS, "procedure"):
            table = counts(runs, lambda run, way=way: [run.timelines["deviations"][way]["videos"]])
            draws, found = Draws.build(len(runs), table.shape[2]), table.sum((1, 2))[:, 0].mean()
            cells = [cell(draws.scores(table, score)) for score in (precision, recall)]
            name = "viterbi that follows the procedure" if way == "procedure" else way
            body.append([method, name, f"{found:.0f} of {table[0, 0, :, 1].sum():.0f}", *cells])
    header = ["row", "decoder", "found of true", "precision", "recall"]
    return ["## Deviations (mixed labels)", "", *markdown(header, body)]


def tables(runs: Sequence[StudiedRun]) -> str:
    groups: dict[str, list[StudiedRun]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        groups.setdefault(run.method, []).append(run)
    videos = {run.timelines["videos"] for run in runs}
    if len(videos) > 1:
        raise RunError(f"runs were tested on different numbers of videos ({sorted(videos)}); test all on the same")
    parts = (decoder_table, gain_table, method_table, rejection_table, deviation_table)
    return "\n".join(line for part in parts for line in part(groups, *videos))


def main(argv: Sequence[str]) -> None:
    own = dict(argument.split("=", 1) for argument in argv if argument.startswith("output="))
    runs = [load_run(Path(argument)) for argument in argv if not argument.startswith("output=")]
    if not runs:
        raise RunError("name the folders of the runs: python benchmarks/segmentation_study.py runs/segmentation/*")
    output = Path(own.get("output", RESULTS))
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "runs.csv", csv_text([COLUMNS, *(row for run in runs for row in rows(run))]))
    head = "# Long videos: all rows\n\nPercent; what each column is: [the protocol](README.md).\n\n"
    write_text(output / "tables.md", head + tables(runs))


if __name__ == "__main__":
    main(sys.argv[1:])
