"""The report of a finished run: one HTML page that works offline, its figures, and the picture of the README."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from ace_dist.evaluate import figures
from ace_dist.evaluate.figures import DARK, LIGHT, concept_figure, srt_figure
from ace_dist.evaluate.metrics import (
    class_f1,
    concept_distances,
    confusion_matrix,
    harmonic_mean,
    random_baseline,
)
from ace_dist.evaluate.run_files import ConceptSpace, Run, read_results, read_run
from ace_dist.utils.errors import RunError

FloatArray = npt.NDArray[np.float64]
TSNE_SEED = 0
TSNE_LEAST = 4  # phrases; scikit-learn's perplexity must stay below their number
CURVES = (  # prefix of the logged names, file, axis, caption, whether the axis starts at 0
    ("loss", "loss", "loss", "Loss and its parts (ACE Eq. 9).", False),
    ("lr", "learning_rate", "learning rate", "Learning rates.", True),
    ("clips_per_s", "throughput", "clips / s", "Throughput, all ranks.", True),
    ("data_wait_share", "data_wait", "share of the step", "Share of a step spent waiting for data.", True),
)
VALIDATION = ("validation", "validation", "percent", "Validation: base actions of held-out groups.", True)


METHODS = {  # as the paper prints them
    "ace": "ACE",
    "procvlr": "ProcVLR",
    "vifi": "ViFi",
    "bike": "BIKE",
    "text4vis": "Text4Vis",
    "lavila": "LaViLa",
}


@dataclass(frozen=True)
class Picture:
    """A drawn figure in both themes, as data URIs that stand in the page."""

    name: str
    caption: str
    light: str
    dark: str


@dataclass(frozen=True)
class Section:
    """A heading, one paragraph, and pictures."""

    title: str
    text: str
    pictures: tuple[Picture, ...]


def write_report(run_dir: Path, compare: Sequence[Path] = ()) -> Path:
    """Write `report.html` and `figures/*.png` into the run directory and return the path of the page.

    `compare`: other run directories (say ProcVLR on the same seed); each becomes a row of the table and of the SRT
    plot, and must be of the same dataset and fold. Raises `RunError` when a file is missing, naming it and the
    launcher that makes it, or when the runs are not comparable.
    """
    run = read_run(run_dir)
    others = _comparable(run, compare)
    names = _row_names([run.results, *others])
    artist = _Artist(run_dir / "figures")
    sections = [
        _srt_section(artist, run, others, names),
        _space_section(artist, run.space),
        _class_section(artist, run),
        _curve_section(artist, run),
    ]
    page = Environment(
        loader=PackageLoader("ace_dist.evaluate"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html.j2")
    path = run_dir / "report.html"
    text = page.render(
        run=run,
        method=_method(run.results),
        hardware=_plain(run.environment["hardware"]),
        rows=[{"name": n, "results": r} for n, r in zip(names, [run.results, *others], strict=True)],
        random=_random_row(run),
        sections=sections,
        distances=_distance_rows(run.space),
        srt=list(zip(run.results["srt"]["runs"], run.srt, strict=True)) if run.srt else [],
        environment=json.dumps(run.environment, indent=2, ensure_ascii=False),
    )
    path.write_text(text, encoding="utf-8")
    return path


def result_picture(run_dir: Path, out_png: Path, compare: Sequence[Path] = ()) -> Path:
    """Draw the one picture that tells the run (2040 x 850 pixels): concept space before and after, and the scores."""
    run = read_run(run_dir)
    others = _comparable(run, compare)
    if len(run.space.phrases) < TSNE_LEAST:
        raise RunError(f"{run_dir}: {_too_few(run.space)}")
    results = [run.results, *others]
    before, after = (concept_distances(rows, run.space.actions) for rows in (run.space.before, run.space.after))
    layouts = (concept_layout(run.space.before, run.space.actions), concept_layout(run.space.after, run.space.actions))
    captions = [
        f"distance within a concept {row['within']:.2f}, between {row['between']:.2f}" for row in (before, after)
    ]
    guess = _random_row(run)
    figure = figures.result_figure(
        f"{_method(run.results)} on {run.results['dataset']}: one action, many words",
        (layouts[0], captions[0]),
        (layouts[1], captions[1]),
        run.space.actions,
        run.space.base,
        {name: _measures(row) for name, row in zip(_row_names(results), results, strict=True)},
        {name: mean for name, (mean, _) in _measures(guess).items()},
    )
    out_png.parent.mkdir(parents=True, exist_ok=True)
    return figures.save(figure, out_png)


# ---------------------------------------------------------------------------------------------------- table rows
def _comparable(run: Run, compare: Sequence[Path]) -> list[dict[str, Any]]:
    """The results of the other runs; all must be of the dataset and fold of this one."""
    others = [read_results(folder) for folder in compare]
    for folder, other in zip(compare, others, strict=True):
        for key in ("dataset", "fold"):
            if other[key] != run.results[key]:
                raise RunError(
                    f"{folder} cannot be compared with {run.folder}: {key} is {other[key]!r} there and "
                    f"{run.results[key]!r} here; leave it out of `compare`"
                )
    return others


def _row_names(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The method of each run; with the seed when a method occurs twice, numbered when the seed does not help."""
    names = [_method(row) for row in results]
    if len(set(names)) < len(names):
        names = [f"{_method(row)} (seed {row['seed']})" for row in results]
    return [name if names.count(name) == 1 else f"{name} #{index + 1}" for index, name in enumerate(names)]


def _method(results: Mapping[str, Any]) -> str:
    """The paper's spelling of the method; the name itself for one that is not in the paper."""
    return METHODS.get(str(results["method"]), str(results["method"]))


def _random_row(run: Run) -> dict[str, Any]:
    """The scores of guessing, in the shape of results.json, from the label distribution; its SRT has no spread."""
    base = random_baseline(run.base.labels, len(run.base.classes)) if run.base else None
    novel = random_baseline(run.novel.labels, len(run.novel.classes)) if run.novel else None
    hm = {metric: harmonic_mean(base[metric], novel[metric]) for metric in base} if base and novel else None
    srt = None
    if novel:
        srt = {f"{metric}_mean": value for metric, value in novel.items()} | {f"{metric}_std": 0.0 for metric in novel}
    return {"method": "Random", "base": base, "novel": novel, "hm": hm, "srt": srt}


def _measures(results: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Accuracy of the measures that the run has, of base, novel, HM and SRT, as (mean, std)."""
    srt = results["srt"]
    single = {"base": "base", "novel": "novel", "HM": "hm"}
    rows = {name: (float(results[key]["accuracy"]), 0.0) for name, key in single.items() if results[key] is not None}
    if srt is not None:
        rows["SRT"] = (float(srt["accuracy_mean"]), float(srt["accuracy_std"]))
    return rows


def _distance_rows(space: ConceptSpace) -> list[dict[str, Any]]:
    """Measured distances of the concept space for base, novel and all actions; an empty group is left out."""
    groups = {"base actions": space.base, "novel actions": ~space.base, "all actions": np.ones_like(space.base)}
    rows = []
    for name, chosen in groups.items():
        if chosen.any():
            actions = [action for action, keep in zip(space.actions, chosen, strict=True) if keep]
            before, after = (concept_distances(part[chosen], actions) for part in (space.before, space.after))
            rows.append({"name": name, "before": before, "after": after})
    return rows


# ------------------------------------------------------------------------------------------------------- sections
class _Artist:
    """Draws each figure in both themes, keeps the files, and hands the page its inline copies."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def picture(self, name: str, caption: str, draw: Callable[..., Figure]) -> Picture:
        """Draw `name` with `draw(theme=...)`."""
        light = figures.save(draw(theme=LIGHT), self.folder / f"{name}.png")
        dark = figures.save(draw(theme=DARK), self.folder / f"{name}_dark.png")
        return Picture(name, caption, _inline(light), _inline(dark))


def _srt_section(artist: _Artist, run: Run, others: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Section:
    guess = _random_row(run)["novel"]
    if guess is None or not run.srt:
        return Section("Synonym robustness", "The test split shows no novel action, so there is nothing to test.", ())
    pictures = []
    for metric, title in (("accuracy", "Accuracy"), ("f1", "F1")):
        runs = {
            name: np.array([[row[metric] for row in results["srt"]["runs"]]])
            for name, results in zip(names, [run.results, *others], strict=True)
            if results["srt"] is not None
        }
        caption = f"{title}: a dot a run, the diamond is run 1 (root labels), the box spans the quartiles."
        pictures.append(
            artist.picture(
                f"srt_{metric}", caption, partial(srt_figure, runs, f"{title} of each run (%)", guess[metric])
            )
        )
    text = (
        f"The novel test clips are classified {len(run.srt)} times, each time with other words for the same actions. "
        "A method that knows the action and not the word has a high mean and a small spread."
    )
    return Section("Synonym robustness", text, tuple(pictures))


def _space_section(artist: _Artist, space: ConceptSpace) -> Section:
    names = tuple(dict.fromkeys(space.actions))
    if len(space.phrases) < TSNE_LEAST:
        return Section("Concept space", _too_few(space), ())
    pictures = []
    for name, rows in (("before", space.before), ("after", space.after)):
        draw = partial(concept_figure, concept_layout(rows, space.actions), space.actions, space.base)
        pictures.append(artist.picture(f"concepts_{name}", f"{name.capitalize()} fine-tuning.", draw))
    text = (
        f"t-SNE of the text embeddings of {len(space.phrases)} phrases of {len(names)} actions. A point is a phrase; "
        "an ellipse is the Gaussian of an action (two standard deviations): green with round points for a base "
        "action, red with triangles for a novel one. Both layouts use the same settings and seed, yet lengths in two "
        "t-SNE pictures do not compare: the table below is measured in the full space."
    )
    if len(names) > figures.NAMED_ACTIONS:
        text += " Actions: " + ", ".join(f"{index + 1} {name}" for index, name in enumerate(names)) + "."
    return Section("Concept space", text, tuple(pictures))


def _too_few(space: ConceptSpace) -> str:
    return f"{len(space.phrases)} phrases are too few for a t-SNE picture, which needs {TSNE_LEAST}."


def _class_section(artist: _Artist, run: Run) -> Section:
    parts = [(n, t, part) for n, t, part in (("base", "Base", run.base), ("novel", "Novel", run.novel)) if part]
    pictures = []
    for name, title, part in parts:
        counts = confusion_matrix(part.labels, part.predictions, len(part.classes))
        caption = f"{title} actions: rows are the true class, columns the predicted one."
        pictures.append(
            artist.picture(f"confusion_{name}", caption, partial(figures.confusion_figure, counts, part.classes))
        )
    for name, title, part in parts:
        scores = class_f1(part.labels, part.predictions, len(part.classes))
        support = np.bincount(part.labels, minlength=len(part.classes))
        draw = partial(figures.class_f1_figure, scores, support, part.classes, part is run.base)
        pictures.append(artist.picture(f"class_f1_{name}", f"{title} actions: F1 of each class.", draw))
    counts_text = " and ".join(f"{len(part.ids)} of {title.lower()} actions" for _, title, part in parts)
    text = f"Test clips with their root labels: {counts_text}."
    return Section("Classes", text, tuple(pictures))


def _curve_section(artist: _Artist, run: Run) -> Section:
    if not run.metrics:
        return Section("Training", "No step was taken: this is the model as it was before fine-tuning.", ())
    pictures = []
    validated = (VALIDATION,) if any("validation_accuracy" in row for row in run.metrics) else ()
    for prefix, name, axis, caption, zero in (*CURVES, *validated):
        curves = dict(_series(run.metrics, prefix))
        if not curves:
            raise RunError(f"{run.folder / 'metrics.jsonl'}: no line has a number named {prefix} or {prefix}_*")
        pictures.append(artist.picture(f"curve_{name}", caption, partial(figures.curve_figure, curves, axis, zero)))
    last = run.metrics[-1]
    return Section("Training", f"{len(run.metrics)} logged steps, up to step {last['step']}.", tuple(pictures))


def _series(metrics: Sequence[Mapping[str, Any]], prefix: str) -> Iterator[tuple[str, tuple[FloatArray, FloatArray]]]:
    """Every logged number named `prefix` or `prefix_*`: name, (steps, values)."""
    names = dict.fromkeys(key for row in metrics for key in row if key == prefix or key.startswith(f"{prefix}_"))
    for name in names:
        rows = [row for row in metrics if isinstance(row.get(name), (int, float))]
        if rows:
            yield name, (np.array([float(row["step"]) for row in rows]), np.array([float(row[name]) for row in rows]))


# --------------------------------------------------------------------------------------------------------- common
def concept_layout(embeddings: FloatArray, actions: Sequence[str]) -> FloatArray:
    """t-SNE to the plane [S, 2] with cosine distances; the perplexity follows the number of phrases of an action."""
    perplexity = min(max(5.0, len(embeddings) / len(set(actions))), 30.0, (len(embeddings) - 1) / 3)
    layout = TSNE(perplexity=perplexity, metric="cosine", init="pca", random_state=TSNE_SEED, n_jobs=1)
    return np.asarray(layout.fit_transform(embeddings), np.float64)


def _inline(path: Path) -> str:
    """A PNG file as data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _plain(value: Any) -> str:
    """A value of environment.json in one line."""
    if value is None or value in ([], {}, ()):
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(part) for part in value)
    return str(value)
