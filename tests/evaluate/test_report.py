"""Protects the report: complete and offline, true to its files, safe with any string, clear about bad files."""

import csv
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from accessibility import assert_no_serious_fault
from data_worlds import write_video

from ace_dist.data.shards import ClipRecord
from ace_dist.evaluate import examples, svg
from ace_dist.evaluate.examples import Frames, confident_mistakes, disagreements, wordings_example
from ace_dist.evaluate.metrics import accuracy, bias_curve, harmonic_mean, macro_f1, srt_summary
from ace_dist.evaluate.report import write_report
from ace_dist.evaluate.sections import CURVES, FIGURES, TERMS, class_rows
from ace_dist.evaluate.verdict import paired_interval
from ace_dist.utils.errors import RunError, UserError

VERBS = ("lift", "spin", "insert", "hammer", "wipe", "push", "shake", "stack", "tilt", "flip", "drop", "slide")
OBJECTS = ("block", "pin", "tray", "side panel", "table-top")


# ------------------------------------------------------------------------------------------------- a finished run
def build_run(
    folder, rng, *, method="ACE", base=6, novel=4, skill=(0.85, 0.6), phrases=7, tightness=0.35, steps=90, clips=12
):
    """Write every file of a run directory with fresh random numbers that agree with each other; return results.json."""
    folder.mkdir(parents=True)
    names = [f"{verb} {OBJECTS[i % len(OBJECTS)]}" for i, verb in enumerate(np.resize(VERBS, base + novel))]
    names = [name if names.index(name) == i else f"{name} {i}" for i, name in enumerate(names)]
    parts = {
        "base": build_predictions(rng, names[:base], skill[0], "b", clips=clips),
        "novel": build_predictions(rng, names[base:], skill[1], "n", clips=clips),
    }
    parts["srt"] = [parts["novel"]]
    for run in range(1, 10):
        labels = [f"synonym{run} of {name}" for name in names[base:]]
        parts["srt"].append(build_predictions(rng, labels, skill[1] * rng.uniform(0.7, 1.0), "n", clips=clips))
    other = [f"synonym of {n}" for n in names[:base]]
    parts["srt_base"] = [parts["base"], build_predictions(rng, other, 0.6, "b", clips=clips)]
    parts["gzsl"] = {"base": build_predictions(rng, names, 0.5, "b", range(base), clips)}
    parts["gzsl"]["novel"] = build_predictions(rng, names, 0.5, "n", range(base, base + novel), clips)
    scores = {name: score(parts[name]) for name in ("base", "novel")}
    hm = {key: harmonic_mean(scores["base"][key], scores["novel"][key]) for key in ("accuracy", "f1")}
    results = {"method": method, "dataset": "tabletop", "fold": 0, "seed": 3, **scores, "hm": hm}
    results |= {name: srt_summary([score(part) for part in parts[name]]) for name in ("srt", "srt_base")}
    gzsl = {name: score(part) for name, part in parts["gzsl"].items()}
    gzsl["hm"] = {key: harmonic_mean(gzsl["base"][key], gzsl["novel"][key]) for key in ("accuracy", "f1")}
    clips = [(part["probabilities"], part["labels"]) for part in parts["gzsl"].values()]
    results["gzsl"] = {**gzsl, "curve": bias_curve(*clips, base)}
    write_json(folder / "results.json", results)
    groups = {name: name for part in ("base", "novel") for name in parts[part]["ids"]}
    write_json(folder / "predictions.json", {**parts, "groups": groups})
    command = "deepspeed --num_gpus=2 launchers/train.py experiment=demo method=ace 'note=two words'"
    hardware = {"cpu": "2 cores", "gpu": "none", "ranks": 2}
    environment = {"command": command, "hardware": hardware, "git_commit": "f00dfeed", "versions": {"torch": "2.15"}}
    write_json(folder / "environment.json", environment)
    (folder / "config.yaml").write_text("experiment: demo\nclip:\n  frames: 8\n")
    write_metrics(folder / "metrics.jsonl", rng, steps)
    write_space(folder / "concept_space.npz", rng, names, base, phrases, tightness)
    return results


def build_predictions(rng, classes, skill, prefix, shown=None, clips=12):
    """Guesses among `classes` for clips of those that are `shown`, by default all."""
    shown = range(len(classes)) if shown is None else shown
    labels = np.concatenate([shown, rng.choice(shown, size=clips * len(shown))])
    guesses = np.where(rng.random(len(labels)) < skill, labels, rng.integers(0, len(classes), size=len(labels)))
    probabilities = rng.dirichlet(np.ones(len(classes)), size=len(labels))
    return {
        "classes": list(classes),
        "ids": [f"{prefix}-{i}" for i in range(len(labels))],
        "labels": labels.tolist(),
        "predictions": guesses.tolist(),
        "probabilities": probabilities.tolist(),
    }


def score(part):
    return {name: fn(part["labels"], part["predictions"]) for name, fn in (("accuracy", accuracy), ("f1", macro_f1))}


def write_metrics(path, rng, steps):
    rows = []
    for step in range(steps):
        fixed, free = (2.3 * np.exp(-3 * step / steps) + rng.uniform(0, 0.5) for _ in range(2))
        loss = {"loss": fixed + free, "loss_fixed": fixed, "loss_random": free}
        rate = {"lr_video": 0.02 * (1 - step / steps), "lr_text": 0.002 * (1 - step / steps)}
        pace = {"clips_per_s": rng.normal(42, 3), "data_wait_share": rng.uniform(0.02, 0.2)}
        rows.append({"step": step, "epoch": step / 30, **loss, **rate, **pace})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_space(path, rng, names, base, phrases, tightness):
    unit = lambda rows: (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)  # noqa: E731
    centre = rng.normal(size=(len(names), 1, 16))
    noise = rng.normal(size=(len(names), phrases, 16))
    before, after = (unit((centre + spread * noise).reshape(-1, 16)) for spread in (1.0, tightness))
    actions = np.repeat(names, phrases)
    texts = [f"word {i} for {name}" for i, name in enumerate(actions)]
    flags = np.repeat(np.arange(len(names)) < base, phrases)
    np.savez(path, before=before, after=after, phrases=texts, actions=actions, base=flags)


def write_json(path, content):
    path.write_text(json.dumps(content))


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    write_json(path, content)


def test_the_page_in_a_browser(phone, tmp_path, rng):
    """Moved away from its run, on a phone: sections, pictures, nothing from the network, no sideways scroll."""
    results = build_run(tmp_path / "ace", rng, steps=20)
    build_run(tmp_path / "procvlr", rng, method="ProcVLR", steps=20)
    (tmp_path / "sent").mkdir()
    page = write_report(tmp_path / "ace", compare=[tmp_path / "procvlr"]).rename(tmp_path / "sent" / "report.html")
    phone.goto(page.as_uri())
    titles = phone.evaluate("[...document.querySelectorAll('h1, h2')].map(title => title.innerText)")
    assert {
        "One clip, three wordings",
        "Confident mistakes",
        "Synonym robustness",
        "Concept space",
        "Classes",
        "Training",
        "Reproduce",
    } < set(titles)
    assert f"{results['novel']['accuracy']:.1f}" in phone.locator("body").inner_text()
    drawings = phone.evaluate(
        "[...document.querySelectorAll('figure svg')].map(one => one.getBoundingClientRect().width)"
    )
    assert len(drawings) > 8 and all(0 < width <= 390 for width in drawings)
    assert phone.evaluate("[...document.querySelectorAll('svg')].every(one => one.getAttribute('aria-label'))")
    targets = phone.evaluate(
        "[...document.querySelectorAll('nav a')].map(a => !!document.querySelector(a.getAttribute('href')))"
    )
    assert len(targets) > 5 and all(targets), "a link to a section that is not there"
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390, "the page is wider than a phone"
    phone.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert_no_serious_fault(phone)
    assert phone.foreign == [] and phone.errors == []


@pytest.fixture
def quick(monkeypatch):
    """Leave out t-SNE, so that tests of the text and of errors stay fast."""
    monkeypatch.setattr("ace_dist.evaluate.sections.concept_layout", lambda rows, actions: np.asarray(rows)[:, :2])


def read_report(folder, compare=()):
    return Page(write_report(folder, compare).read_text(encoding="utf-8"))


class Page(HTMLParser):
    """Text, tags and addresses of a page, and whether every element was closed."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.words = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "srcset", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def check_tables(run, results):
    """The numbers of the figures' CSV files are those of the run's own files, counted here."""

    def read(name):
        with (run / "figures" / f"{name}.csv").open() as file:
            return list(csv.DictReader(file))

    predictions = json.loads((run / "predictions.json").read_text())
    for name in ("base", "novel"):
        part = predictions[name]
        named = (
            tuple(part["classes"][i] for i in pair) for pair in zip(part["labels"], part["predictions"], strict=True)
        )
        found = {(row["true"], row["named"]): int(row["clips"]) for row in read(f"confusion_{name}")}
        assert found == Counter(named)
    for metric in ("accuracy", "f1"):
        found = {(row["method"], int(row["label_set"])): float(row[metric]) for row in read(f"srt_{metric}")}
        runs = {(name, i): one[metric] for name, row in results.items() for i, one in enumerate(row["srt"]["runs"], 1)}
        assert found == pytest.approx(runs)
    columns = ("bias", "base", "novel")
    points = [
        (name, *point)
        for name, row in results.items()
        for point in zip(*(row["gzsl"]["curve"][key] for key in columns), strict=True)
    ]
    assert [(row["method"], *(float(row[key]) for key in columns)) for row in read("bias_curve")] == points
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for prefix, name, *_ in CURVES[:-1]:  # there was no validation
        found = {(int(row["step"]), row["curve"]): float(row[name]) for row in read(f"curve_{name}")}
        keys = [key for key in logged[0] if key.startswith(prefix)]
        assert found == pytest.approx({(row["step"], TERMS[key]): row[key] for row in logged for key in keys})
    space = np.load(run / "concept_space.npz")
    for name in ("before", "after"):
        found = sorted((row["action"], row["phrase"]) for row in read(f"concepts_{name}"))
        assert found == sorted(zip(space["actions"].tolist(), space["phrases"].tolist(), strict=True))


# ------------------------------------------------------------------------------------------------------- the page
def test_report_is_complete_and_works_offline(tmp_path, rng):
    ours = build_run(tmp_path / "ace", rng)
    theirs = build_run(tmp_path / "procvlr", rng, method="procvlr", skill=(0.8, 0.4))
    path = write_report(tmp_path / "ace", compare=[tmp_path / "procvlr"])
    assert path == tmp_path / "ace" / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert all(address.startswith(("data:", "#")) for address in page.addresses)  # nothing is loaded, not even figures/
    assert "script" not in page.tags and "@import" not in path.read_text() and "url(" not in path.read_text()
    assert "ProcVLR" in page.text and "procvlr" not in page.text
    for row in (ours, theirs):
        for part in ("base", "novel", "hm"):
            assert f"{row[part]['accuracy']:.1f} F1 {row[part]['f1']:.1f}" in page.text
        srt = row["srt"]
        assert f"{srt['accuracy_mean']:.1f} ± {srt['accuracy_std']:.1f}" in page.text
        assert f"F1 {srt['f1_mean']:.1f} ± {srt['f1_std']:.1f}" in page.text
        gzsl, curve = row["gzsl"], row["gzsl"]["curve"]
        words = " ".join(f"{gzsl[part]['accuracy']:.1f} F1 {gzsl[part]['f1']:.1f}" for part in ("base", "novel", "hm"))
        best = f"{curve['best_hm']:.1f} bias {curve['best_bias']:.2f} {curve['area']:.1f}"
        assert f"{words} {best} {row['srt_base']['accuracy_mean']:.1f} ± " in page.text
    assert "Random 16.7 F1" in page.text and "25.0 ± 0.0" in page.text  # 6 base and 4 novel actions
    assert "synonym9 of" in page.text and "cpu 2 cores, gpu none, ranks 2" in page.text
    assert "launchers/train.py experiment=demo method=ace 'note=two words'" in page.text
    drawn = {file.stem for file in (tmp_path / "ace" / "figures").glob("*.svg")}
    assert drawn | {"curve_validation"} == set(FIGURES) and drawn == {
        *("srt_accuracy", "srt_f1", "concepts_before", "concepts_after", "confusion_base", "confusion_novel"),
        *("bias_curve", "curve_loss", "curve_learning_rate", "curve_throughput", "curve_data_wait"),
    }
    assert drawn == {file.stem for file in (tmp_path / "ace" / "figures").glob("*.csv")}
    check_tables(tmp_path / "ace", {"ACE": ours, "ProcVLR": theirs})
    assert page.tags.count("svg") == len(drawn)
    for name in drawn:
        assert ElementTree.parse(tmp_path / f"ace/figures/{name}.svg").getroot().tag.endswith("svg")  # opens alone
        assert sum(address.startswith("data:") for address in page.addresses) > 2 * len(drawn)
    assert "under drawn synonyms" in page.text and "loss_random" not in page.text


def test_any_string_is_text_and_never_markup(tmp_path, rng, quick):
    build_run(tmp_path / "run", rng, method="<script>alert(1)</script>")
    nasty = '"><img src=x onerror=alert(2)> $x^{$ & {{ 7*7 }}'
    edit_json(tmp_path / "run/predictions.json", lambda parts: parts["srt"][2]["classes"].__setitem__(0, nasty))
    edit_json(tmp_path / "run/environment.json", lambda found: found.update(command=nasty, hardware=nasty))
    (tmp_path / "run/config.yaml").write_text("name: </pre><script>alert(3)</script>\n")
    page = read_report(tmp_path / "run")
    assert "script" not in page.tags
    assert page.text.count(nasty) >= 3  # label table, hardware, command (the environment shows it with JSON's quotes)
    assert "</pre><script>alert(3)</script>" in page.text


def test_the_concept_table_is_measured_not_drawn(tmp_path, rng, quick):
    build_run(tmp_path / "run", rng, tightness=0.2)
    text = read_report(tmp_path / "run").text
    found = re.search(r"novel actions (\S+) → (\S+) (\S+) → (\S+)", text)
    within_before, within_after, between_before, between_after = map(float, found.groups())
    file = np.load(tmp_path / "run/concept_space.npz")
    groups = [file["after"][file["actions"] == name] for name in np.unique(file["actions"][~file["base"]])]
    pairs = [1 - (g @ g.T)[np.triu_indices(len(g), 1)].mean() for g in groups]
    assert within_after == pytest.approx(np.mean(pairs), abs=6e-4)
    assert within_after < within_before and between_before > 0.5 and between_after > 0.5


def test_a_step_logged_again_after_a_resume_counts_once(tmp_path, rng, quick):
    build_run(tmp_path / "run", rng, steps=20)
    path = tmp_path / "run/metrics.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")
    assert "20 logged steps, up to step 19" in read_report(tmp_path / "run").text


@pytest.mark.parametrize("gone", ["base", "novel"])
def test_a_data_set_without_base_or_novel_test_clips_is_reported_as_such(tmp_path, rng, gone):
    build_run(tmp_path / "run", rng, base=3, novel=3)
    lost = [gone, "hm"] + (["srt"] if gone == "novel" else [])
    srt = "srt" if gone == "novel" else "srt_base"
    nothing = {gone: None, srt: [], "gzsl": None}
    changed = dict.fromkeys([*lost, srt, "gzsl"]) | {"fold": None}
    edit_json(tmp_path / "run/results.json", lambda results: results.update(changed))
    edit_json(tmp_path / "run/predictions.json", lambda parts: parts.update(nothing))
    page = read_report(tmp_path / "run")
    assert "Fold" not in page.text and page.text.count("–") == 2 * len(lost)  # in the row of the run and of Random
    assert ("nothing to test" in page.text) == (gone == "novel") and "There is no such test" in page.text
    edit_json(tmp_path / "run/predictions.json", lambda parts: parts.update(base=None, novel=None))
    with pytest.raises(RunError, match="only one of results.json and predictions.json has"):
        write_report(tmp_path / "run")


def test_the_row_of_a_class_by_hand():
    """lift lid: one of three clips right, named once, so F1 is 2 / (3 + 1); spin pin: both right, named four times."""
    part = {
        "classes": ["lift lid", "spin pin", "push arm"],
        "ids": ["c", "b", "a", "e", "d"],
        "labels": [0, 0, 0, 1, 1],
        "predictions": [0, 1, 1, 1, 1],
    }
    frames = SimpleNamespace(of_clip=lambda key, *_: (f"picture of {key}",))
    rows = class_rows(SimpleNamespace(base=None, novel=part), frames)
    assert [tuple(row[key] for key in ("part", "name", "clips", "taken", "picture")) for row in rows] == [
        ("novel", "spin pin", 2, "", "picture of d"),
        ("novel", "lift lid", 3, "spin pin (2)", "picture of a"),
    ]
    assert [row["f1"] for row in rows] == pytest.approx([100 * 4 / 6, 50.0])


def test_too_few_phrases_for_a_layout_are_said_so(tmp_path, rng):
    build_run(tmp_path / "run", rng, base=2, novel=1, phrases=1, steps=3)
    text = read_report(tmp_path / "run").text
    assert "3 phrases are too few for a t-SNE picture" in text
    assert re.search(r"all actions none \d", text)  # one phrase an action has no spread


# --------------------------------------------------------------------------------------------------------- errors
WRITERS = {
    "train": (  # which also evaluates at its end
        *("config.yaml", "environment.json", "metrics.jsonl", "results.json", "predictions.json", "concept_space.npz"),
    ),
}


@pytest.mark.parametrize(("launcher", "name"), [(launcher, name) for launcher in WRITERS for name in WRITERS[launcher]])
def test_a_missing_file_is_named_with_its_launcher(tmp_path, rng, name, launcher):
    build_run(tmp_path / "run", rng, steps=3)
    (tmp_path / "run" / name).unlink()
    with pytest.raises(RunError, match=rf"{name} is missing; ace {launcher}"):
        write_report(tmp_path / "run")
    assert not (tmp_path / "run/report.html").exists()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("results.json", lambda r: r["novel"].update(accuracy=r["novel"]["accuracy"] + 1), "of different evaluations"),
        ("results.json", lambda r: r["hm"].update(f1=r["hm"]["f1"] + 1), "but the harmonic mean of its base"),
        ("results.json", lambda r: r["srt"]["runs"].pop(), "9 runs of srt, predictions.json 10"),
        ("results.json", lambda r: r.pop("hm"), "results.json: hm is missing"),
        ("results.json", lambda r: r["base"].pop("f1"), "results.json: base.f1 is missing"),
        ("environment.json", lambda e: e.pop("command"), "environment.json: command is missing"),
        ("results.json", lambda r: r["gzsl"]["hm"].update(f1=-1.0), "gzsl.hm.f1 = -1.00, but the harmonic mean"),
        ("results.json", lambda r: r["gzsl"]["base"].update(accuracy=-1.0), "gzsl.base.accuracy = -1.00"),
        ("results.json", lambda r: r["gzsl"].pop("curve"), "gzsl.curve is missing"),
        ("results.json", lambda r: r.pop("gzsl"), "only one of results.json and predictions.json has gzsl"),
        ("predictions.json", lambda p: p["srt_base"].pop(), "2 runs of srt_base, predictions.json 1"),
        ("predictions.json", lambda p: p["base"]["ids"].__setitem__(0, p["base"]["ids"][1]), "occurs twice"),
        ("predictions.json", lambda p: p["srt"][3]["labels"].pop(), r"srt\[3\]: .* ids, .* labels"),
        ("predictions.json", lambda p: p["novel"]["predictions"].__setitem__(0, 99), "must lie in"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, rng, file, change, message):
    build_run(tmp_path / "run", rng, steps=3)
    edit_json(tmp_path / "run" / file, change)
    with pytest.raises(UserError, match=message):
        write_report(tmp_path / "run")


def test_a_run_of_before_has_a_report_too(tmp_path, rng, quick):
    """Its results have neither the robustness test on base actions nor all classes together."""
    build_run(tmp_path / "run", rng, steps=3)
    for file in ("results.json", "predictions.json"):
        edit_json(tmp_path / "run" / file, lambda content: [content.pop(name) for name in ("srt_base", "gzsl")])
    assert "There is no such test" in read_report(tmp_path / "run").text


def test_broken_text_is_named_with_its_line(tmp_path, rng, capsys):
    build_run(tmp_path / "run", rng, steps=3)
    path = tmp_path / "run/metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'\xff\n[7]\n{"step": "3"}\n{"step": 3, "lo')
    write_report(tmp_path / "run")
    assert f"{path}: left out, as damaged: line 4, 5, 6, 7" in capsys.readouterr().out
    path.write_text('{"step": 3, "validation_accuracy": 50.0}\n')  # it ended before its first line of losses
    assert "1 logged steps, up to step 3" in write_report(tmp_path / "run").read_text()
    path.write_text("")
    assert "No step was taken" in write_report(tmp_path / "run").read_text()
    (tmp_path / "run/concept_space.npz").write_bytes(b"no archive")
    with pytest.raises(RunError, match=r"concept_space.npz cannot be read"):
        write_report(tmp_path / "run")


def test_runs_of_another_dataset_are_not_compared(tmp_path, rng):
    build_run(tmp_path / "one", rng, steps=3)
    build_run(tmp_path / "two", rng, steps=3)
    edit_json(tmp_path / "two/results.json", lambda results: results.update(dataset="ata"))
    with pytest.raises(RunError, match="dataset is 'ata' there and 'tabletop' here"):
        write_report(tmp_path / "one", compare=[tmp_path / "two"])


def test_a_page_that_is_written_again_keeps_its_comparison(tmp_path, rng, quick, capsys):
    """As by `ace train` of a finished run and `ace evaluate`; moved with its neighbours; when one of them is gone."""
    for name in ("ace", "procvlr", "lavila"):
        build_run(tmp_path / "runs" / name, rng, method=name, steps=3)
    write_report(tmp_path / "runs/ace", [tmp_path / "runs/procvlr", tmp_path / "runs/lavila"])
    runs = (tmp_path / "runs").rename(tmp_path / "moved")
    assert {"ProcVLR", "LaViLa"} <= set(read_report(runs / "ace", None).text.split())
    shutil.rmtree(runs / "procvlr")
    capsys.readouterr()
    again = read_report(runs / "ace", None).text.split()
    assert "ProcVLR" not in again and "LaViLa" in again
    assert f"left out of the report: {runs / 'procvlr' / 'results.json'} is missing" in capsys.readouterr().out
    assert "LaViLa" not in read_report(runs / "ace", ()).text.split(), "compare='[]' forgets them"
    assert "LaViLa" not in read_report(runs / "ace", None).text.split()


# ------------------------------------------------------------------------------------------- verdict and examples
def test_the_verdict_says_what_the_numbers_say(tmp_path, rng, quick):
    ours = build_run(tmp_path / "ace", rng, skill=(0.9, 0.95), steps=3)
    build_run(tmp_path / "procvlr", rng, method="procvlr", skill=(0.9, 0.1), steps=3)
    text = read_report(tmp_path / "ace", [tmp_path / "procvlr"]).text
    assert f"ACE names {ours['srt']['accuracy_mean']:.1f} % of the test clips right" in text
    assert "It is ahead of ProcVLR: +" in text and "guessing gives 25.0 %" in text and "Commit f00dfeed" in text
    text = read_report(tmp_path / "procvlr", [tmp_path / "ace"]).text
    assert "It is behind ACE: -" in text
    text = read_report(tmp_path / "ace", [tmp_path / "ace"]).text
    assert (
        "It is not clearly apart from ACE (seed 3) #2: +0.0 points (95 %: +0.0 to +0.0, paired over 52 clips)" in text
    )


def test_a_difference_has_an_interval_where_the_groups_are_known(tmp_path, rng, quick):
    """Clips of four people are no independent ones; where nothing says whose they are, nobody is ahead."""
    build_run(tmp_path / "ace", rng, skill=(0.9, 0.95), steps=3)
    build_run(tmp_path / "procvlr", rng, method="procvlr", skill=(0.9, 0.1), steps=3)
    edit = lambda change: edit_json(tmp_path / "ace/predictions.json", change)  # noqa: E731
    edit(lambda parts: parts.update(groups={name: str(k % 4) for k, name in enumerate(parts["groups"])}))
    assert "paired over 4 groups of clips)" in read_report(tmp_path / "ace", [tmp_path / "procvlr"]).text
    edit(lambda parts: parts.pop("groups"))
    text = read_report(tmp_path / "ace", [tmp_path / "procvlr"]).text
    assert "Its difference to ProcVLR is +" in text and "points, without an interval" in text and "ahead" not in text


def test_a_curve_has_the_colour_of_its_row_and_no_figure_is_of_an_earlier_report(tmp_path, rng, quick):
    """A run without a curve between two others; after another test of it its old figures are gone, others' stay."""
    for name in ("ace", "lavila", "procvlr"):
        build_run(tmp_path / name, rng, method=name, steps=3)
    read_report(tmp_path / "ace", [])
    (tmp_path / "ace/figures/mine.svg").touch()
    for key in ("gzsl", "srt"):
        edit_json(tmp_path / "lavila/results.json", lambda results, key=key: results.update({key: None}))
    read_report(tmp_path / "ace", [tmp_path / "lavila", tmp_path / "procvlr"])
    for name in ("bias_curve", "srt_f1"):
        svg = (tmp_path / f"ace/figures/{name}.svg").read_text()
        used = svg.split("</style>")[1]
        assert "var(--method0)" in used and "var(--method2)" in used and "var(--method1)" not in used
    for file in ("results", "predictions"):
        edit_json(tmp_path / f"ace/{file}.json", lambda content: content.update(gzsl=None))
    read_report(tmp_path / "ace", [])
    there = {path.name for path in (tmp_path / "ace/figures").iterdir()}
    assert not any(name.startswith("bias_curve") for name in there) and {"mine.svg", "srt_f1.svg"} <= there


def test_the_same_run_before_fine_tuning_is_a_row(tmp_path, rng, quick):
    """As `ace evaluate evaluation.interpolate=0 output=DIR` leaves it: results and predictions, and no run folder."""
    build_run(tmp_path / "ace", rng, steps=3)
    build_run(tmp_path / "before", rng, skill=(0.1, 0.2), steps=3)
    weights = "trained; tested with evaluation.interpolate=0"
    edit_json(tmp_path / "before/results.json", lambda results: results.update(weights=weights))
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "concept_space.npz"):
        (tmp_path / "before" / name).unlink()
    text = read_report(tmp_path / "ace", [tmp_path / "before"]).text
    assert "ahead of before fine-tuning" in text and "(seed" not in text


def test_the_weights_before_training_are_a_row_unasked(tmp_path, rng, quick):
    """As a run's test leaves them in `before/`; beside others, and once where they are asked for as well."""
    build_run(tmp_path / "ace", rng, steps=3)
    build_run(tmp_path / "procvlr", rng, method="procvlr", steps=3)
    build_run(tmp_path / "ace/before", rng, skill=(0.1, 0.2), steps=3)
    facts = {"weights": "step 3; tested with evaluation.interpolate=0", "notes": ["novel is not above chance"]}
    edit_json(tmp_path / "ace/before/results.json", lambda results: results.update(facts))
    for compare in ((), [tmp_path / "procvlr"], [tmp_path / "procvlr/../ace/before"], None):
        text = read_report(tmp_path / "ace", compare).text
        assert text.count("It is ahead of before fine-tuning: +") == 1 and "not above chance" not in text
        assert ("ProcVLR" in text) == (compare == [tmp_path / "procvlr"])
    (tmp_path / "ace/before/predictions.json").unlink()
    (tmp_path / "ace/model").mkdir()
    (tmp_path / "ace/model/trained.safetensors").touch()
    with pytest.raises(RunError, match=f"ace evaluate run={tmp_path / 'ace'} writes it"):
        write_report(tmp_path / "ace")


def test_a_page_of_400_classes_with_frames_stays_below_3_mb(tmp_path, rng, quick, monkeypatch):
    """Its clips have the detail of photographs: amplitudes fall with the frequency, values take the whole range."""
    build_run(tmp_path / "run", rng, base=240, novel=160, steps=3, clips=2)
    frequencies = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(456))
    frequencies[0, 0] = 1
    detail = np.fft.ifft2(np.fft.fft2(rng.normal(size=(3, 256, 456))) / frequencies).real
    detail = detail[:1] + 0.3 * detail  # channels that are alike
    frame = np.clip(128 + 50 * detail / detail.std(), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    write_video(tmp_path / "clip.mp4", np.stack([frame] * 3))
    content = (tmp_path / "clip.mp4").read_bytes()
    predictions = json.loads((tmp_path / "run/predictions.json").read_text())
    fields = {"shard": "0", "offset": 0, "size": len(content), "frames": 3, "fps": 12, "width": 456, "height": 256}
    fields |= {
        "segment_start_s": 0,
        "segment_end_s": 0.25,
        "verb": "lift",
        "object": "cup",
        "split": "test",
        "sha256": "",
    }
    records = {
        key: ClipRecord(key=key, group=key, **fields) for part in ("base", "novel") for key in predictions[part]["ids"]
    }
    files = SimpleNamespace(read=lambda record: content)
    monkeypatch.setattr(Frames, "of_run", lambda run, shards: Frames(records, files))
    page = write_report(tmp_path / "run").read_text()
    assert page.count("data:image/jpeg") > 400 and "frames are not shown" not in page
    assert len(page.encode()) < 3e6


def test_tested_clips_are_found_whatever_split_is_stored(tmp_path, monkeypatch):
    """`dataset.test_groups` chooses the test after the build, whose shards may call all clips training."""
    fields = dict.fromkeys(
        ("offset", "size", "frames", "fps", "width", "height", "segment_start_s", "segment_end_s"), 1
    )
    names = {"shard": "0", "verb": "lift", "object": "cup", "sha256": ""}
    record = ClipRecord(key="c1", group="anna", split="train", **fields, **names)
    found = SimpleNamespace(records=[record], folder=tmp_path, split=lambda split: [record] * (split == "train"))
    monkeypatch.setattr(examples, "run_config", lambda *_: SimpleNamespace(dataset=SimpleNamespace(shards="")))
    monkeypatch.setattr(examples.ShardSet, "read", lambda folder: found)
    assert Frames.of_run(tmp_path, None).records["c1"].group == "anna"


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ("annotations: lists/gearbox.csv", "gearbox"),
        ("annotations: gearbox/annotations.csv", "gearbox"),
        ("{annotations: null, shards: own/shards}", "own"),
        ("{}", "csv"),
    ],
)
def test_a_data_set_is_called_by_its_own_name(tmp_path, rng, quick, settings, name):
    build_run(tmp_path / "run", rng, steps=3)
    edit_json(tmp_path / "run/results.json", lambda results: results.update(dataset="csv"))
    lines = f"dataset: {settings}\n" if settings[0] == "{" else f"dataset:\n  {settings}\n"
    (tmp_path / "run/config.yaml").write_text(lines)
    assert f"ACE on {name} " in read_report(tmp_path / "run").text


def test_the_paired_interval_counts_groups_and_not_clips(rng):
    gain = rng.normal(size=40) + np.repeat([0, 4, 2, 6], 10)  # people differ, by more than clips do
    groups = [f"person {i // 10}" for i in range(40)]
    mean, half, count = paired_interval(np.repeat(gain, 9), np.repeat(groups, 9).tolist())
    assert count == 4 and mean == pytest.approx(gain.mean())
    assert half == pytest.approx(paired_interval(gain, groups)[1])  # the same clips nine times say nothing more
    sums = (gain - gain.mean()).reshape(4, 10).sum(axis=1)
    assert half == pytest.approx(3.18245 * np.sqrt((sums**2).sum() * 4 / 3) / 40, rel=1e-4)  # Student's t, 3 degrees


@pytest.mark.parametrize("gain", [[100.0] * 12, [100.0, 0.0] * 6])
def test_two_people_who_gain_the_same_do_not_speak_for_all(gain):
    """Their sums do not differ, which is no evidence that others' would not; without a gain there is nothing to say."""
    mean, half, count = paired_interval(np.array(gain), ["a"] * 6 + ["b"] * 6)
    assert count == 2 and half > mean > 0
    assert paired_interval(np.zeros(12), ["a"] * 6 + ["b"] * 6) == (0, 0, 2)
    assert paired_interval(np.repeat(gain, 40), [str(k) for k in range(480)])[1] < mean


def test_the_clip_of_the_first_picture_is_chosen_by_the_rule_that_it_states(rng):
    truth, right, wrong = [0, 1, 0, 1], [0, 1, 0, 1], [1, 1, 1, 0]

    def build(named):
        return [entry(names, truth, named) for names in (["lift", "spin"], ["raise", "turn"], ["hoist", "twirl"])]

    example, text = wordings_example({"ACE": build(right), "ProcVLR": build(wrong)}, Frames())
    assert example.clip == "a" and [answer.wording for answer in example.answers["ACE"]] == ["lift", "raise", "hoist"]
    assert "Right under all 3 wordings: ACE 4, ProcVLR 1 of 4 clips. 3 are right with ACE alone, 0 with another" in text
    assert "Shown is the first clip, by name, that ACE names right under all 3 wordings and ProcVLR not." in text
    example, text = wordings_example({"ACE": build(wrong), "ProcVLR": build(right)}, Frames())
    assert example.clip == "b" and "There is no clip that ACE names right" in text and "0 are right with ACE" in text


def test_mistakes_are_the_most_confident_ones_one_of_each_pair_of_labels():
    part = entry(["lift", "spin", "wipe"], [0, 0, 1, 2, 2], [1, 1, 2, 2, 0], [0.6, 0.9, 0.7, 0.99, 0.5])
    found = confident_mistakes([part], "ACE", Frames())
    assert [example.clip for example in found] == ["b", "c", "e"]
    votes = found[0].answers["ACE"][0].votes
    assert [vote.label for vote in votes if vote.is_true] == ["lift"] and votes[0].label == "spin"


def test_clips_on_which_words_disagree_come_first():
    sets = [entry(["lift", "spin", "wipe"], [0, 1, 2], named) for named in ([0, 1, 2], [0, 2, 0], [0, 2, 1], [0, 1, 2])]
    found = disagreements(sets, "ACE", Frames())
    assert [example.clip for example in found] == ["c", "b"]  # "a" always gets one answer
    assert found[0].remark == "right under 2 of 4 label sets, 3 different answers"


def entry(classes, labels, predictions, confidence=None):
    """An entry of predictions.json whose clips are a, b, c, ..; `confidence` [N] of the named label."""
    confidence = np.full(len(labels), 0.8) if confidence is None else np.array(confidence)
    rest = (1 - confidence) / (len(classes) - 1)
    probabilities = np.repeat(rest[:, None], len(classes), axis=1)
    probabilities[np.arange(len(labels)), predictions] = confidence
    ids = list("abcdefgh"[: len(labels)])
    return {
        "classes": classes,
        "ids": ids,
        "labels": labels,
        "predictions": predictions,
        "probabilities": probabilities,
    }


# -------------------------------------------------------------------------------------------------------- drawings
def test_labels_of_the_concept_map_do_not_overlap(rng):
    names = [f"{verb} {OBJECTS[i % 5]}" for i, verb in enumerate(VERBS)]
    places = rng.uniform((60, 60), (370, 340), size=(4, 2))[np.arange(12) % 4]
    centre = svg.parted([tuple(place) for place in places], names, 400.0)
    half = np.array([[svg.LETTER * 0.46 * len(name), 6.5] for name in names])
    overlap = half[:, None] + half[None] - np.abs(centre[:, None] - centre[None]) > 1
    assert np.triu(overlap.all(axis=2), 1).sum() <= 2


def test_a_gaussian_is_drawn_with_its_own_covariance(rng):
    angle = rng.uniform(0, np.pi)
    shape = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * rng.uniform(8, 30, size=2)
    points = rng.normal(size=(4000, 2)) @ shape.T + rng.uniform(100, 200, size=2)
    ellipse, top = svg.action_ellipse(points)
    values = np.linalg.eigvalsh(np.cov(points.T, bias=True))
    assert sorted([ellipse["rx"], ellipse["ry"]]) == pytest.approx(sorted(2 * np.sqrt(values)))
    turn = np.radians(float(re.match(r"rotate\((\S+)", ellipse["transform"])[1]))
    axes = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    around = (points - [ellipse["cx"], ellipse["cy"]]) @ axes / [ellipse["rx"], ellipse["ry"]]
    assert ((around**2).sum(axis=1) < 1).mean() == pytest.approx(1 - np.exp(-2), abs=0.03)  # two standard deviations
    edge = (np.array(top) - [ellipse["cx"], ellipse["cy"]]) @ axes / [ellipse["rx"], ellipse["ry"]]
    assert (edge**2).sum() == pytest.approx(1, abs=0.02) and top[1] < ellipse["cy"]  # y grows downwards


def test_single_phrases_single_sets_and_many_classes_can_be_drawn():
    svg.concept_map(np.eye(2), ["a", "b"], ["a", "b"], np.array([True, False]))
    svg.srt_chart({"ACE": [50.0]}, ["root labels"], 20.0, "Accuracy", ["ACE"])
    counts = np.eye(90, dtype=np.int64) + np.eye(90, k=1, dtype=np.int64)
    chart = ElementTree.fromstring(
        svg.confusion_chart(counts, [f"a very long name of action {i}" for i in range(90)], "base")
    )
    assert len(chart.findall(".//rect")) < 3 * svg.MOST_CLASSES
    svg.confusion_chart(np.zeros((3, 3), np.int64), ["a", "b", "c"], "novel")
    svg.line_chart({"loss": np.array([[0.0], [1.0]])}, "loss", True, False)


def test_a_loss_is_drawn_on_a_logarithmic_axis_unless_it_reaches_zero():
    curve = np.array([np.arange(1.0, 101.0), np.geomspace(12, 0.01, 100)])
    assert "logarithmic axis" in svg.line_chart({"loss": curve}, "loss", True, False)
    assert "logarithmic axis" not in svg.line_chart({"loss": curve * [[1], [0]]}, "loss", True, False)
