"""The sections of a run's report: text, figures with their numbers, and examples of clips."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from sklearn.manifold import TSNE

from ace_dist.evaluate import svg
from ace_dist.evaluate.caveats import chance_scores
from ace_dist.evaluate.examples import (
    SMALL_SIDE,
    Example,
    Frames,
    confident_mistakes,
    disagreements,
    wordings_example,
)
from ace_dist.evaluate.metrics import class_f1, concept_distances, confusion_matrix
from ace_dist.evaluate.run_files import ConceptSpace, Run

FloatArray = npt.NDArray[np.float64]
Results = Mapping[str, Any]  # as in results.json
Predicted = Mapping[str, Any]  # as in predictions.json
TSNE_SEED = 0
TSNE_LEAST = 4  # phrases; scikit-learn's perplexity must stay below their number
MAPPED_ACTIONS = 24  # of a concept map: more names hide each other, and t-SNE takes a minute for 4,000 phrases
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
FIGURES = (  # every figure that a report may have
    *("srt_accuracy", "srt_f1", "confusion_base", "confusion_novel", "bias_curve", "concepts_before", "concepts_after"),
    *(f"curve_{name}" for _, name, *_ in CURVES),
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
        chart = svg.srt_chart(scores, sets, guess[metric], f"{title} of each label set (%)", [*rows])
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
            caption += (
                f" The {svg.MOST_CLASSES} of {drawn} classes with the lowest shares of right answers; the CSV file"
            )
            caption += " has all."
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
    chart = Markup(svg.bias_chart(curves, [*rows]))  # nosec B704: escaped in svg.py
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
    return section


def concept_layout(embeddings: FloatArray, actions: Sequence[str]) -> FloatArray:
    """t-SNE to the plane [S, 2] with cosine distances; the perplexity follows the number of phrases of an action."""
    perplexity = min(max(5.0, len(embeddings) / len(set(actions))), 30.0, (len(embeddings) - 1) / 3)
    layout = TSNE(perplexity=perplexity, metric="cosine", init="pca", random_state=TSNE_SEED, n_jobs=1)
    return np.asarray(layout.fit_transform(embeddings), np.float64)


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
