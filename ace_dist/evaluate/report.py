"""The report of a finished run: one HTML page that works offline, its figures, and their numbers."""

import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from sklearn.manifold import TSNE
from typing_extensions import TypedDict

from ace_dist.evaluate import svg
from ace_dist.evaluate.caveats import chance_scores, predicted_runs
from ace_dist.evaluate.examples import (
    SMALL_SIDE,
    Example,
    Frames,
    confident_mistakes,
    disagreements,
    same_clips,
    wordings_example,
)
from ace_dist.evaluate.metrics import class_f1, concept_distances, confusion_matrix
from ace_dist.evaluate.palette import METHODS, method_name
from ace_dist.evaluate.run_files import BEFORE, ConceptSpace, Run, read_predictions, read_results, read_run
from ace_dist.evaluate.verdict import against, tested, verdict
from ace_dist.utils.errors import RunError
from ace_dist.utils.files import write_json, write_text
from ace_dist.utils.pictures import data_uri
from ace_dist.utils.reading import Text, check_shape, read_object, read_yaml
from ace_dist.utils.tables import csv_text

FloatArray = npt.NDArray[np.float64]
Results = Mapping[str, Any]  # as in results.json
Predicted = Mapping[str, Any]  # as in predictions.json
TSNE_SEED = 0
TSNE_LEAST = 4  # phrases; scikit-learn's perplexity must stay below their number
MAPPED_ACTIONS = 24  # of a concept map: more names hide each other, and t-SNE takes a minute for 4,000 phrases
COMPARED = "compared.json"  # beside the page: the other runs that it was asked to show, as seen from there
CURVES = (  # prefix of the logged names, file, axis, caption, whether the axis is logarithmic, whether it starts at 0
    (
        "loss",
        "loss",
        "loss",
        "Loss and its parts (ACE Eq. 9); of a long run smoothed, with the steps as a pale line.",
        True,
        False,
    ),
    ("lr", "learning_rate", "learning rate", "Learning rates of the two encoders.", False, True),
    ("clips_per_s", "throughput", "clips per second", "Throughput of all ranks together.", False, True),
    ("data_wait_share", "data_wait", "share of the step", "Share of a step spent waiting for data.", False, True),
    ("validation", "validation", "percent", "Validation: base actions of held-out groups.", False, True),
)
TERMS = {  # names in metrics.jsonl -> what they are
    "loss": "loss",
    "loss_fixed": "under root labels",
    "loss_random": "under drawn synonyms",
    "lr_video": "video encoder",
    "lr_text": "text encoder",
    "lr_new": "new layers",
    "clips_per_s": "clips per second",
    "data_wait_share": "waiting for data",
    "validation_accuracy": "accuracy",
    "validation_f1": "macro F1",
}
FORMATS = ("csv", "mstcn", "webdataset")  # data sets whose name says how they are stored
COMMON_NAMES = {"", "annotations", "labels", "shards", "data", "clips"}  # of files and folders, which name no data set


class Compared(TypedDict):
    runs: list[Text]


@dataclass
class Figure:
    """A drawing with its caption, and its numbers."""

    name: str
    caption: str
    numbers: Sequence[Sequence[object]]  # with a header
    svg: Markup
    links: dict[str, str] = field(default_factory=dict)  # name of a file -> data URI


@dataclass
class Section:
    title: str
    text: str
    figures: list[Figure] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        return re.sub(r"\W+", "-", self.title.lower())


def write_report(
    folder: Path, compare: Sequence[Path] | None = None, output: Path | None = None, shards: str | None = None
) -> Path:
    """Write `report.html` and `figures/` into the run folder, or `output`, and return the path of the page.

    `compare`: other run folders (say ProcVLR on the same seed); each becomes a row of the table and of the figures, and
    must be of the same dataset and fold; `None`: those that the page had before. The results in `before/` of the run,
    of the weights that it began with, are a row in any case. `shards`: where the clips lie now.
    Raises `RunError` when a file is missing, naming it and the launcher that makes it, or when the runs are not
    comparable.
    """
    run = read_run(folder, output)
    others = list(compared_before(run) if compare is None else compare)
    asked, before = 1 + len(others), run.tested / BEFORE
    if (before / "results.json").is_file() and before.resolve() not in (other.resolve() for other in others):
        others.append(before)
    rows = table_rows(run, others)
    ours, *names = rows
    guesses: dict[str, Predicted] = {ours: {"base": run.base, "novel": run.novel, "srt": run.srt}}
    guesses |= {name: read_predictions(other) for name, other in zip(names, others, strict=True)}
    frames = Frames.of_run(folder, shards)
    css = svg.theme_css([*rows])
    sections = [
        wordings_section(dict(itertools.islice(guesses.items(), asked)), frames),
        srt_section(run, rows),
        *example_sections(run, ours, frames),
        class_section(run),
        gzsl_section(rows),
        space_section(run),
        curve_section(run),
    ]
    (run.output / "figures").mkdir(parents=True, exist_ok=True)
    if compare is not None:
        write_json(run.output / COMPARED, {"runs": [os.path.relpath(other, run.output) for other in compare]})
    for figure in itertools.chain.from_iterable(section.figures for section in sections):
        write_figure(figure, run.output / "figures", css)
    path = run.output / "report.html"
    write_text(path, page_html(run, rows, guesses, sections, frames, css))
    return path


def page_html(
    run: Run,
    rows: Mapping[str, Results],
    guesses: Mapping[str, Predicted],
    sections: Sequence[Section],
    frames: Frames,
    css: str,
) -> str:
    chance = chance_row(run)
    classes = class_rows(run, frames)  # the frames' problem, if any, is known only then
    templates = Environment(
        loader=PackageLoader("ace_dist.evaluate"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("report.html.j2").render(
        run=run,
        css=Markup(css),  # nosec B704: colours and names of our own
        method=method_name(run.results["method"]),
        dataset=dataset_name(run),
        verdict=" ".join(verdict_sentences(run, rows, guesses, frames)),
        facts=facts(run, rows),
        rows=rows,
        random=chance,
        notes=notes(rows),
        sections=sections,
        classes=classes,
        problem=frames.problem,
        distances=group_distances(run.space),
        together={name: results for name, results in {**rows, "Random": chance}.items() if results["gzsl"]},
        srt=list(zip(run.results["srt"]["runs"], run.srt, strict=True)) if run.srt else [],
        environment=json.dumps(run.environment, indent=2, ensure_ascii=False),
    )


def compared_before(run: Run) -> list[Path]:
    """The runs that the page before this one showed; one that is gone, or comparable no more, is left out aloud."""
    path, found = run.output / COMPARED, []
    if not path.is_file():
        return []
    advice = "; delete it, or write it anew with `ace report run=DIR compare=...`"
    stored = check_shape(read_object(path, RunError, advice), Compared, str(path), RunError, advice)
    for name in stored["runs"]:
        other = Path(os.path.normpath(run.output / name))
        try:
            table_rows(run, [other])
            theirs = read_predictions(other)
            for ours, entry in ((run.base, theirs["base"]), (run.novel, theirs["novel"])):
                if ours and entry:
                    same_clips(ours["ids"], entry)
        except RunError as error:
            print(f"left out of the report: {error}", flush=True)
        else:
            found.append(other)
    return found


def write_figure(figure: Figure, folder: Path, css: str) -> None:
    """Write a figure's SVG and its numbers beside the page, and note them as links of the page that need no file."""
    files = {
        f"{figure.name}.svg": svg.standalone(figure.svg, css),
        f"{figure.name}.csv": csv_text(figure.numbers),
    }
    for name, text in files.items():
        write_text(folder / name, text)
        kind = "image/svg+xml" if name.endswith(".svg") else "text/csv"
        figure.links[name] = data_uri(kind, text.encode())


# ------------------------------------------------------------------------------------------------- names and table rows
def dataset_name(run: Run) -> str:
    """The data set's own name: of one that is named as its format, that of its annotations or of its shards' folder."""
    name = str(run.results["dataset"])
    if name not in FORMATS:
        return name
    dataset = read_yaml(run.folder / "config.yaml", RunError).get("dataset") or {}
    for place in (dataset.get("annotations"), dataset.get("shards")):
        for word in (Path(place).stem, Path(place).parent.name) if isinstance(place, str) else ():
            if word not in COMMON_NAMES:
                return word
    return name


def facts(run: Run, rows: Mapping[str, Results]) -> dict[str, str]:
    """What a reader needs to place the result."""
    git = run.environment.get("git") or {}
    parts = {name: part for name, part in (("base", run.base), ("novel", run.novel)) if part}
    commit = str(git.get("commit") or run.environment.get("git_commit") or "unknown")[:10]
    written = datetime.fromtimestamp((run.tested / "results.json").stat().st_mtime, UTC)
    seeds = sorted({int(row["seed"]) for row in rows.values()})
    found = {
        "Seed" if len(seeds) == 1 else "Seeds": ", ".join(map(str, seeds)),
        "Tested": f"{written:%d %B %Y}",
        "Commit": commit + (" with changes" if git.get("modified") else ""),
        "Actions": ", ".join(f"{len(part['classes'])} {name}" for name, part in parts.items()),
        "Test clips": ", ".join(f"{len(part['ids'])} {name}" for name, part in parts.items()),
        "Hardware": in_one_line(run.environment["hardware"]),
    }
    if "world_size" in run.environment:
        found["Ranks"] = str(run.environment["world_size"])
    return found if run.results["fold"] is None else {"Fold": str(run.results["fold"]), **found}


def verdict_sentences(
    run: Run, rows: Mapping[str, Results], guesses: Mapping[str, Predicted], frames: Frames
) -> list[str]:
    """The verdict on the run, its difference to each other one, and the number of seeds."""
    ours, *others = rows
    sentences = [verdict(ours, {**run.results, "chance": run.results["chance"] or chance_row(run)})]
    part = tested(run.results)
    if part is None:
        return sentences
    for other in others:
        mine, theirs = (predicted_runs(guesses[name], part) for name in (ours, other))
        if mine and len(mine) == len(theirs):
            sentences.append(against(mine, other, theirs, frames.group))
    return [*sentences, "This is one seed; others give other numbers."]


def table_rows(run: Run, compare: Sequence[Path]) -> dict[str, Results]:
    """The results of this run and of the others by name, which must be of its dataset and fold.

    A name is the method; with the seed when a method occurs twice, numbered when the seed does not help.
    """
    others = [read_results(folder) for folder in compare]
    for (folder, other), key in itertools.product(zip(compare, others, strict=True), ("dataset", "fold")):
        if other[key] != run.results[key]:
            raise RunError(
                f"{folder} cannot be compared with {run.folder}: {key} is {other[key]!r} there and "
                f"{run.results[key]!r} here; leave it out of `compare`"
            )
    results = [run.results, *others]
    names = [row_name(row) for row in results]
    if len(set(names)) < len(names):
        names = [f"{row_name(row)} (seed {row['seed']})" for row in results]
    names = [name if names.count(name) == 1 else f"{name} #{index + 1}" for index, name in enumerate(names)]
    return dict(zip(names, results, strict=True))


def row_name(results: Results) -> str:
    return METHODS["pretrained_not_fine_tuned"][0] if is_before(results) else method_name(results["method"])


def is_before(results: Results) -> bool:
    """Whether they are of the weights that training began with (`ace evaluate evaluation.interpolate=0`)."""
    return str(results.get("weights", "")).endswith("evaluation.interpolate=0")


def notes(rows: Mapping[str, Results]) -> list[str]:
    """What speaks against the scores of each row; before fine-tuning nobody expects them to be above chance."""
    ours, *others = rows
    found = [f"{name}: {note}" for name in others if not is_before(rows[name]) for note in rows[name]["notes"]]
    return [*rows[ours]["notes"], *found]


def chance_row(run: Run) -> dict[str, Any]:
    """The scores of guessing, in the shape of results.json; from the predictions, as runs of before do not say them."""
    return {"interval": None, **chance_scores({"base": run.base, "novel": run.novel, "gzsl": run.gzsl})}


def group_distances(space: ConceptSpace) -> dict[str, list[dict[str, float]]]:
    """Distances of the concept space before and after, of base, novel and all actions; an empty group is left out."""
    groups = {"base actions": space.base, "novel actions": ~space.base, "all actions": np.ones_like(space.base)}
    return {
        name: [concept_distances(rows[group], np.array(space.actions)[group]) for rows in (space.before, space.after)]
        for name, group in groups.items()
        if group.any()
    }


# --------------------------------------------------------------------------------------------------------- sections
def wordings_section(guesses: Mapping[str, Predicted], frames: Frames) -> Section:
    """One clip, the same action in several wordings, and how every model votes."""
    models = {name: found["srt"] for name, found in guesses.items() if found["srt"]}
    title = "One clip, three wordings"
    if len(models) < len(guesses) or (found := wordings_example(models, frames)) is None:
        return Section(title, "The test holds no novel action under several label sets, so there is nothing to show.")
    example, text = found
    return Section(title, text, examples=[example])


def srt_section(run: Run, rows: Mapping[str, Results]) -> Section:
    guess = chance_row(run)["novel"]
    if guess is None or not run.srt:
        return Section("Synonym robustness", "The test split shows no novel action, so there is nothing to test.")
    sets = ["root labels" if i == 0 else ", ".join(map(str, part["classes"][:6])) for i, part in enumerate(run.srt)]
    section = Section(
        "Synonym robustness",
        f"The novel test clips are classified {len(run.srt)} times, each time with other words for the same actions "
        "(Synonym Robustness Test, SRT). A method that knows the action and not the word has a high mean and a small "
        "spread.",
    )
    scored = {name: results["srt"]["runs"] for name, results in rows.items() if results["srt"] is not None}
    for metric, title in (("accuracy", "accuracy"), ("f1", "macro F1")):
        scores = {name: [row[metric] for row in runs] for name, runs in scored.items()}
        table = [
            ("method", "label_set", metric),
            *((n, i + 1, v) for n, one in scores.items() for i, v in enumerate(one)),
        ]
        words = f"{title[0].upper()}{title[1:]}: a dot a label set, the ring the root labels, the line the mean."
        chart = svg.srt_chart(scores, sets, guess[metric], f"{title} of each label set (%)")
        section.figures.append(Figure(f"srt_{metric}", words, table, Markup(chart)))  # nosec B704: escaped in svg.py
    return section


def example_sections(run: Run, model: str, frames: Frames) -> list[Section]:
    parts = [part for part in (run.base, run.novel) if part is not None]
    if any("probabilities" not in part for part in (*parts, *run.srt)):
        return [Section("Confident mistakes", "predictions.json holds no probabilities, so no clip can be shown.")]
    mistakes = Section(
        "Confident mistakes",
        "The wrong answers, under root labels, with the largest probability, one of each pair of labels: look here for "
        "wrong labels in the data, and for actions that a camera cannot tell apart. The true label is in bold.",
        examples=confident_mistakes(parts, model, frames),
    )
    words = Section(
        "Where words disagree",
        "The novel clips that get the most different answers under the label sets, each with a set that has it right, "
        "where there is one, and one that has it wrong.",
        examples=disagreements(run.srt, model, frames),
    )
    return [section for section in (mistakes, words) if section.examples]


def class_section(run: Run) -> Section:
    parts = {name: part for name, part in (("base", run.base), ("novel", run.novel)) if part}
    counted = " and ".join(f"{len(part['ids'])} of {name} actions" for name, part in parts.items())
    section = Section("Classes", f"Test clips with their root labels: {counted}.")
    for name, part in parts.items():
        classes = part["classes"]
        counts = confusion_matrix(part["labels"], part["predictions"], len(classes))
        caption = f"{name.capitalize()} actions, the best named first: right answers on the diagonal."
        if (drawn := len(svg.worst_first(counts))) > svg.MOST_CLASSES:
            caption += f" The {svg.MOST_CLASSES} of {drawn} classes with the most errors; the CSV file has all."
        cells = [(classes[i], classes[j], int(counts[i, j])) for i, j in np.argwhere(counts > 0)]
        chart = Markup(svg.confusion_chart(counts, classes, name))  # nosec B704: escaped in svg.py
        section.figures.append(Figure(f"confusion_{name}", caption, [("true", "named", "clips"), *cells], chart))
    return section


def class_rows(run: Run, frames: Frames) -> list[dict[str, Any]]:
    """Of each class a thumbnail of its first test clip, F1, number of clips, and what it is most often taken for."""
    found = []
    for name, part in (("base", run.base), ("novel", run.novel)):
        if part is None:
            continue
        classes, labels = part["classes"], part["labels"]
        counts = confusion_matrix(labels, part["predictions"], len(classes))
        scores = class_f1(labels, part["predictions"], len(classes))
        first = {label: clip for clip, label in sorted(zip(part["ids"], labels, strict=True), reverse=True)}
        for index in svg.worst_first(counts)[::-1]:
            wrong = counts[index].copy()
            wrong[index] = 0
            taken = f"{classes[int(wrong.argmax())]} ({wrong.max()})" if wrong.any() else ""
            picture = frames.of_clip(first[index], 1, SMALL_SIDE) if index in first else ()
            row = {"part": name, "name": classes[index], "clips": int(counts[index].sum()), "taken": taken}
            found.append({**row, "f1": float(scores[index]), "picture": picture[0] if picture else ""})
    return found


def gzsl_section(rows: Mapping[str, Results]) -> Section:
    title = "All classes together"
    if not any((results["gzsl"] or {}).get("curve") for results in rows.values()):
        no = "There is no such test: it needs test clips of base and of novel actions, and scores of a model."
        return Section(title, no)
    curves = {name: results["gzsl"] for name, results in rows.items() if (results["gzsl"] or {}).get("curve")}
    text = (
        "Base and novel clips choose among all classes (generalised zero-shot). A model that trained on base classes "
        "prefers them; the curve shows what a bias taken from their scores trades (calibrated stacking), the dot is "
        "without one. The area under it does not depend on any bias; the best harmonic mean is found on the test "
        "clips and bounds what a bias chosen elsewhere can reach."
    )
    table: list[Sequence[object]] = [("method", "bias", "base", "novel")]
    for name, gzsl in curves.items():
        table += [
            (name, *point) for point in zip(*(gzsl["curve"][key] for key in ("bias", "base", "novel")), strict=False)
        ]
    chart = Markup(svg.bias_chart(curves))  # nosec B704: escaped in svg.py
    return Section(title, text, [Figure("bias_curve", "Novel over base accuracy at every bias.", table, chart)])


def space_section(run: Run) -> Section:
    space, title = mapped(run.space), "Concept space"
    if len(space.phrases) < TSNE_LEAST:
        return Section(title, too_few(space))
    names = tuple(dict.fromkeys(space.actions))
    text = (
        f"t-SNE of the text embeddings of {len(space.phrases)} phrases of {len(names)} actions. A point is a phrase; "
        "an ellipse is the Gaussian of an action (two standard deviations): round points for a base action, triangles "
        "for a novel one. Both layouts use the same settings and seed, yet lengths in two t-SNE pictures do not "
        "compare: the table below is measured in the full space, over all actions."
    )
    if (every := len(set(run.space.actions))) > len(names):
        text = f"The first {len(names)} of {every} actions, novel ones first. {text}"
    section = Section(title, text)
    for name, embeddings in (("before", space.before), ("after", space.after)):
        layout = concept_layout(embeddings, space.actions)
        table = [
            ("action", "phrase", "x", "y"),
            *((a, p, *xy) for a, p, xy in zip(space.actions, space.phrases, layout.tolist(), strict=True)),
        ]
        chart = Markup(svg.concept_map(layout, space.phrases, space.actions, space.base))  # nosec B704: escaped in svg.py
        section.figures.append(Figure(f"concepts_{name}", f"{name.capitalize()} fine-tuning.", table, chart))
    return section


def mapped(space: ConceptSpace) -> ConceptSpace:
    """The phrases of at most `MAPPED_ACTIONS` actions, those of novel ones first."""
    order = np.argsort(space.base, kind="stable")
    names = list(dict.fromkeys(space.actions[index] for index in order))[:MAPPED_ACTIONS]
    rows = [index for index, action in enumerate(space.actions) if action in set(names)]
    phrases, actions = (tuple(one[index] for index in rows) for one in (space.phrases, space.actions))
    return ConceptSpace(space.before[rows], space.after[rows], phrases, actions, space.base[rows])


def too_few(space: ConceptSpace) -> str:
    return f"{len(space.phrases)} phrases are too few for a t-SNE picture, which needs {TSNE_LEAST}."


def curve_section(run: Run) -> Section:
    if not run.metrics:
        return Section("Training", "No step was taken: this is the model as it was before fine-tuning.")
    section = Section("Training", f"{len(run.metrics)} logged steps, up to step {run.metrics[-1]['step']}.")
    for prefix, name, axis, caption, log, zero in CURVES:
        points: dict[str, list[tuple[float, float]]] = {}  # of every number named `prefix` or `prefix_*`
        for row in run.metrics:
            for key, value in row.items():
                if (key == prefix or key.startswith(f"{prefix}_")) and isinstance(value, (int, float)):
                    points.setdefault(TERMS.get(key, key), []).append((row["step"], value))
        if points:
            curves = {key: np.array(rows, np.float64).T for key, rows in points.items()}
            table = [("step", "curve", name), *((int(n), key, v) for key, rows in points.items() for n, v in rows)]
            chart = Markup(svg.line_chart(curves, axis, log, zero))  # nosec B704: escaped in svg.py
            section.figures.append(Figure(f"curve_{name}", caption, table, chart))
        elif prefix != "validation":  # which a run need not have
            raise RunError(f"{run.folder / 'metrics.jsonl'}: no line has a number named {prefix} or {prefix}_*")
    return section


def concept_layout(embeddings: FloatArray, actions: Sequence[str]) -> FloatArray:
    """t-SNE to the plane [S, 2] with cosine distances; the perplexity follows the number of phrases of an action."""
    perplexity = min(max(5.0, len(embeddings) / len(set(actions))), 30.0, (len(embeddings) - 1) / 3)
    layout = TSNE(perplexity=perplexity, metric="cosine", init="pca", random_state=TSNE_SEED, n_jobs=1)
    return np.asarray(layout.fit_transform(embeddings), np.float64)


def in_one_line(value: Any) -> str:
    """A value of environment.json in words."""
    if value is None or value in ([], {}, ()):
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {in_one_line(part)}" for key, part in value.items())
    return ", ".join(map(in_one_line, value)) if isinstance(value, (list, tuple)) else str(value)
