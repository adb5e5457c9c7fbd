"""Protects studies: rows of runs.csv, paired intervals, what is missing, and the files that the launcher writes."""

import csv
import json
import math
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest

from ace_dist.cli import execute
from ace_dist.cluster.sweep import Sweep, expand
from ace_dist.evaluate.metrics import srt_summary
from ace_dist.evaluate.palette import BLUE, LIGHT, VERMILLION
from ace_dist.tools.study.drawing import chances, gain_counts, gains_figure, scores_figure
from ace_dist.tools.study.grid import gains
from ace_dist.tools.study.report import same_test, study_page
from ace_dist.tools.study.rows import (
    FIELDS,
    Difference,
    PlannedRun,
    StudyRow,
    commit_and_hardware,
    gather,
    merge_rows,
    paired_difference,
    read_rows,
    write_rows,
)
from ace_dist.tools.study.tables import expand_table, load_table
from ace_dist.utils.errors import ConfigError, RunError

ENVIRONMENT = {
    "git": {"commit": "f00dfeed" * 5, "modified": True}, "hardware": {"cpu": "a CPU", "cores": 2}, "world_size": 2,
}  # fmt: skip


def finish(folder, rng):
    """A finished run's files with random scores; returns `results.json`."""
    scores = [{"accuracy": rng.uniform(0, 100), "f1": rng.uniform(0, 100)} for _ in range(13)]
    parts = dict(zip(("base", "novel", "hm"), scores, strict=False))
    srt = srt_summary(scores[3:])
    gzsl = dict(zip(("base", "novel", "hm"), scores[3:], strict=False))
    gzsl["curve"] = dict.fromkeys(("best_hm", "best_bias"), 1.0) | {"area": rng.uniform(0, 100)}
    gzsl["curve"] |= {"bias": [0.0], "base": [1.0], "novel": [0.0]}
    results = {"method": "m", "dataset": "tabletop", "fold": 0, "seed": 0, **parts, "srt": srt, "gzsl": gzsl}
    results["srt_base"] = srt_summary(scores[:9])
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    actions = [f"verb{i} block" for i in range(3) for _ in range(4)]
    before, after = (np.random.default_rng().normal(size=(12, 6)) for _ in range(2))
    np.savez(
        folder / "concept_space.npz", before=before, after=after, phrases=actions, actions=actions, base=[True] * 12
    )
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    (folder / "metrics.jsonl").write_text('{"step": 1, "elapsed_s": 1.0}\n{"step": 9, "elapsed_s": 41.6}\n')
    return results


def row(method, seed, value, experiment="table1"):
    """A row whose scores are all `value`."""
    return StudyRow(experiment, method, seed, dict.fromkeys(FIELDS[3:], value))


def test_the_interval_is_students_by_hand():
    """Differences 1, 2, 3, 6: mean 3, s = sqrt(14/3) = 2.1602, t(0.975, 3) = 3.1824 (any table), half 3.4374."""
    ours = [row("ace", seed, 50.0 + d) for seed, d in enumerate((1, 2, 3, 6))]
    theirs = [row("procvlr", seed, 50.0) for seed in (3, 1, 0, 2, 9)]  # in another order, one without a pair
    found = paired_difference(ours, theirs, "novel_accuracy")
    assert found.n == 4 and found.mean == pytest.approx(3.0)
    half = 3.182446 * math.sqrt(14 / 3) / 2
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half), abs=1e-4)
    assert str(found) == "+3.0 [-0.4, +6.4]"


def test_pairs_are_of_one_seed_and_one_pair_has_no_interval():
    """Unpaired means would hide that seeds differ; an interval out of one seed would be made up."""
    assert paired_difference([row("a", 1, 5.0)], [row("b", 2, 5.0)], "novel_f1") is None
    single = paired_difference([row("a", 1, 5.0), row("a", 2, None)], [row("b", 1, 7.0), row("b", 2, 1.0)], "novel_f1")
    assert (single.mean, single.low, single.n) == (-2.0, None, 1) and str(single) == "-2.0 (one seed)"
    page = study_page([row("a", 1, 5.0), row("a", 3, 5.0), row("b", 1, 7.0), row("b", 2, 1.0)], "b")
    assert "a and b are not paired at seed 2, 3" in page


def test_pairs_are_compared_within_and_need_no_reference():
    """Each line has its own two rows, over the seeds of both; one without a common seed is named as missing."""
    values = {"a_plain": [(0, 1.0), (1, 3.0), (2, 99.0)], "a_ace": [(0, 2.0), (1, 6.0)], "b_plain": [(0, 5.0)],
              "b_ace": [(1, 5.0)]}  # fmt: skip
    rows = [row(method, seed, value, "encoders") for method, line in values.items() for seed, value in line]
    page = study_page(rows, "", pairs={"A": ("a_plain", "a_ace"), "B": ("b_plain", "b_ace")})
    table = page.split("## Within each pair")[1]
    line = next(line for line in table.splitlines() if line.startswith("| A |"))
    half = 12.706205 * 1.0  # t(0.975, 1) times s/sqrt(2) = sqrt(2)/sqrt(2) of the differences 1 and 3
    cell = f"2.0 -> 4.0: +2.0 [{2 - half:+.1f}, {2 + half:+.1f}]"
    assert [part.strip() for part in line.strip("|").split("|")] == ["A", "2", *[cell] * 7]
    assert "| B |" not in table and "b_ace and b_plain are not paired at seed 0, 1" in page
    assert "a_ace and a_plain are not paired at seed 2" in page
    with pytest.raises(RunError, match=r"reference=\(not set\) has no finished run; there are a_plain"):
        study_page(rows, "")


def test_rows_are_replaced_by_their_key_and_survive_the_disk(tmp_path):
    """The same experiment, method and seed again: the new one, in its place; everything else stays; None stays None."""
    path = tmp_path / "sub" / "runs.csv"
    old = [row("a", 0, 1.0), row("a", 0, 2.0, "table3"), row("a", 1, None), row("b b", 0, 4.0)]
    write_rows(old, path)
    assert path.read_text().splitlines()[0] == (
        "experiment,method,seed,base_accuracy,base_f1,novel_accuracy,novel_f1,srt_accuracy_mean,srt_accuracy_std,"
        "srt_f1_mean,srt_f1_std,srt_base_accuracy_mean,srt_base_accuracy_std,srt_base_f1_mean,srt_base_f1_std,"
        "gzsl_base_accuracy,gzsl_base_f1,gzsl_novel_accuracy,gzsl_novel_f1,gzsl_area,dataset,sweep"
    )
    merged = merge_rows(read_rows(path), [row("a", 0, 9.0), row("c", 0, 5.0)])
    assert merged == [row("a", 0, 9.0), *old[1:], row("c", 0, 5.0)]
    path.write_text(path.read_text().replace("4.0000", "four"))
    with pytest.raises(RunError, match=r"runs\.csv, line 5: .*four"):
        read_rows(path)
    before = [",".join(line.split(",")[:11]) for line in path.read_text().replace("four", "4").splitlines()]
    path.write_text("\n".join(before) + "\n")  # a file of version 0.1
    earlier = read_rows(path)
    assert earlier[0].scores["srt_f1_std"] == 1.0
    assert {r.scores["gzsl_area"] for r in earlier} == {None}
    assert "gzsl" not in study_page(earlier[:1], "a").split("## Difference")[0].splitlines()[4]
    path.write_text(",".join(FIELDS) + "\na\n")  # cut off, as by a full disk
    with pytest.raises(RunError, match=r"runs\.csv, line 2: "):
        read_rows(path)
    path.write_text("method,seed\n")
    with pytest.raises(RunError, match="expected the columns experiment,method"):
        read_rows(path)


def test_a_run_of_a_wheel_names_its_version(tmp_path):
    """Outside a checkout there is no commit to name."""
    facts = ENVIRONMENT | {"git": dict.fromkeys(("commit", "modified")), "versions": {"ace-dist": "0.9"}}
    (tmp_path / "environment.json").write_text(json.dumps(facts))
    assert commit_and_hardware(tmp_path) == "ace-dist 0.9, 2 rank(s), a CPU (2 cores)"


def test_folds_are_averaged_and_a_missing_one_makes_the_seed_missing(tmp_path):
    """A mean over three of four folds is of other people than the others' means."""
    rng = random.Random()
    found = [finish(tmp_path / f"{seed}-{fold}", rng) for seed, fold in ((0, 1), (0, 2), (1, 1))]
    planned = [PlannedRun("ace", seed, tmp_path / f"{seed}-{fold}") for seed in (0, 1) for fold in (1, 2)]
    study = gather(planned, "table2")
    assert [r.seed for r in study.rows] == [0] and study.missing == ["ace, seed 1: 1-2 not finished"]
    mean = (found[0]["srt"]["f1_std"] + found[1]["srt"]["f1_std"]) / 2
    assert study.rows[0].scores["srt_f1_std"] == pytest.approx(mean)
    with pytest.raises(RunError, match="no run is finished: ace, seed 1"):
        gather(planned[2:], "table2")


@pytest.mark.parametrize(
    ("dataset", "sweep", "method", "words"),
    [
        ("ikea", "s", "bike", "table1 has rows of the data set ata, and these runs are of ikea; .*experiment=NAME"),
        ("ata", "t", "ace", "table1, ace has rows of the sweep s, and these are of the sweep t; .*experiment=NAME"),
        ("ata", "t", "bike", None),
        ("ata", "s", "ace", None),
    ],
)
def test_a_mean_is_of_one_data_set_and_one_sweep(dataset, sweep, method, words, tmp_path):
    """One output folder for two tests, or for two settings of a method; rows of before say neither and stay."""
    old = [replace(row("ace", 0, 1.0), dataset="ata", sweep="s"), row("procvlr", 0, 2.0)]
    write_rows(old, tmp_path / "runs.csv")
    assert read_rows(tmp_path / "runs.csv") == old
    new = replace(row(method, 1, 3.0), dataset=dataset, sweep=sweep)
    if words:
        with pytest.raises(RunError, match=words):
            merge_rows(old, [new])
    else:
        assert merge_rows(old, [new]) == [*old, new]


def test_a_sweep_over_data_sets_is_reported_one_at_a_time(tmp_path, capsys):
    """`reference=` would be compared with runs of another test; and a run that is not finished any more has no row."""
    sweep = Sweep(tmp_path / "s")
    sweep.add(expand(["experiment=demo,ata_ace", "method=ace,procvlr", "seed=0..1", "dataset.synonyms=x"]))
    sweep.write()
    for name in sweep.runs:
        finish(sweep.folder / name, random.Random())
    asked = ["report", f"sweep={sweep.folder}", f"output={tmp_path}/out", "experiment=e"]
    reference = "reference=procvlr experiment=demo"
    with pytest.raises(RunError, match="the sweep has runs of ata, tabletop, which are not compared; .* dataset=NAME"):
        execute([*asked, reference])
    with pytest.raises(ConfigError, match="dataset=ikea: the sweep has runs of ata, tabletop"):
        execute([*asked, reference, "dataset=ikea"])
    execute([*asked, "reference=experiment=demo procvlr", "dataset=tabletop"])
    path = tmp_path / "out/runs.csv"
    assert [(r.method, r.seed, r.dataset, r.sweep) for r in read_rows(path)] == [
        (f"experiment=demo {method}", seed, "tabletop", "s") for method in ("ace", "procvlr") for seed in (0, 1)
    ]
    (sweep.folder / "experiment-demo_method-ace_seed-1/results.json").unlink()
    execute([*asked, "reference=experiment=demo procvlr", "dataset=tabletop"])
    assert [r.seed for r in read_rows(path)] == [0, 0, 1]


@pytest.fixture
def swept(tmp_path):
    """A sweep of Figure 3 on the tabletop with two seeds, one run missing; results by run id."""
    sweep = Sweep(tmp_path / "s")
    sweep.submissions = [{"command": "python launchers/sweep.py table=figure3"}]
    sweep.add(expand_table(["experiment=demo", "seed=0..1"], load_table("figure3")), "figure3")
    sweep.write()
    rng = random.Random()
    names = [name for name in sweep.runs if name != "row-second_order_6_seed-1"]
    return sweep, {name: finish(sweep.folder / name, rng) for name in names}


def test_the_launcher_writes_rows_page_and_figures(swept, tmp_path, launch):
    """As a user: from a sweep's folder to runs.csv, a page, and figures, which the rows alone give again."""
    sweep, results = swept
    output = tmp_path / "out"
    asked = [f"sweep={sweep.folder}", f"output={output}"]
    wrong = launch("report", *asked, "reference=procvlr", check=False)
    assert wrong.returncode == 2 and "reference=procvlr has no finished run; there are no_synonyms" in wrong.stderr
    assert not output.exists()
    launch("report", *asked, "reference=no_synonyms")
    with (output / "runs.csv").open() as file:
        rows = {(r["method"], r["seed"]): r for r in csv.DictReader(file)}
    assert len(rows) == 17 and {r["experiment"] for r in rows.values()} == {"figure3"}
    run, row_ = results["row-second_order_6_seed-0"], rows["second_order_6", "0"]
    for column, score in (
        ("srt_accuracy_std", run["srt"]["accuracy_std"]), ("srt_base_f1_mean", run["srt_base"]["f1_mean"]),
        ("gzsl_novel_f1", run["gzsl"]["novel"]["f1"]), ("gzsl_area", run["gzsl"]["curve"]["area"]),
    ):  # fmt: skip
        assert float(row_[column]) == pytest.approx(score, abs=1e-4)
    page = (output / "figure3.md").read_text()
    assert "second_order_6, seed 1: row-second_order_6_seed-1 not finished" in page
    assert "commit f00dfeedf0 with uncommitted changes, 2 rank(s), a CPU (2 cores)" in page and "42 to 42 s" in page
    assert "`python launchers/sweep.py table=figure3`" in page
    with np.load(sweep.folder / "row-second_order_6_seed-0" / "concept_space.npz") as file:
        unit = file["after"] / np.linalg.norm(file["after"], axis=1, keepdims=True)
    blocks = (unit @ unit.T).reshape(3, 4, 3, 4)
    between = 1 - np.mean([blocks[i, :, j].mean() for i in range(3) for j in range(i)])
    assert f"| {between:.3f} |\n" in page.split("## Concept space")[1].split("##")[0]
    names = {path.name for path in output.glob("*.png")}
    assert names == {f"figure3_{kind}.png" for kind in ("scores", "curve1", "curve2")}
    assert all(f"({name})" in page for name in names)
    for name in names:
        (output / name).unlink()
    shutil.rmtree(sweep.folder)
    launch("report", f"figures={output}")
    assert {path.name for path in output.glob("*.png")} == names


def test_wrong_folders_are_named(tmp_path, launch):
    """Neither a sweep nor a run; and both at once."""
    for settings, words in (
        ([f"sweep={tmp_path}/none", "output=o", "reference=r"], "sweep.json does not exist"),
        (["sweep=a", "run=b"], "unknown setting 'sweep'"),
    ):
        done = launch("report", *settings, check=False)
        assert done.returncode == 2 and words in done.stderr, done.stderr


def test_a_forest_plot_says_who_is_better_where():
    """Best first, the title counts, the colour is of the side of 0; a spread is better when it falls."""
    better, worse, open_ = Difference(5.0, 1.0, 9.0, 5), Difference(-4.0, -7.0, -1.0, 5), Difference(1.0, -3.0, 5.0, 5)
    gains = {
        "unclear": {"srt_accuracy_mean": open_, "srt_accuracy_std": open_},
        "lost": {"srt_accuracy_mean": worse, "srt_accuracy_std": better},
        "won": {"srt_accuracy_mean": better, "srt_accuracy_std": worse},
    }
    assert gain_counts(gains) == (1, 1, 3)
    figure = gains_figure(gains, "A title", level=1 - 0.05 / 16)
    assert figure.get_suptitle() == "A title" and "99.69% interval" in figure.get_supxlabel()
    mean, spread = figure.axes
    assert [label.get_text() for label in mean.get_yticklabels()] == ["won", "unclear", "lost"]
    for axes, colours in ((mean, [BLUE, LIGHT.muted, VERMILLION]), (spread, [BLUE, LIGHT.muted, VERMILLION])):
        assert [line.get_color() for line in axes.get_lines()[:3]] == colours


def test_a_figure_says_its_finding_and_what_chance_is():
    rows = [
        row("random", 0, 16.7, "t"),
        *(row(m, seed, v + seed, "t") for m, v in (("vifi_ft", 50), ("ace", 40)) for seed in (0, 1)),
    ]
    assert chances(rows)["base_accuracy"] == 16.7
    assert "base_accuracy" not in chances([*rows, row("random", 0, 12.5, "u")])  # two worlds: which one is not said
    other = replace(row("random", 0, 12.5, "u"), dataset="ata")
    assert chances(same_test([*rows, other], rows)) == chances(rows)
    methods = {name: [one for one in rows if one.method == name] for name in ("random", "vifi_ft", "ace")}
    figure = scores_figure(methods, chances(rows))
    assert "Best under other words: ViFi-CLIP" in figure.get_suptitle()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["ViFi-CLIP", "ACE"]
    assert any(line.get_linestyle() == "--" for line in figure.axes[0].get_lines())


def test_gains_over_a_grid(tmp_path, launch):
    """Each cell is paired with its own reference, whichever way its settings were written; an unpaired one says so."""
    rng = random.Random()
    offsets = {(noise, shift): rng.uniform(-20, 20) for noise in ("0.2", "0.4") for shift in ("0", "1")}
    rows = []
    for (noise, shift), offset in offsets.items():
        for seed in range(3):
            cell = f"grid verb_noise={noise} domain_shift={shift}"
            rows.append(row("procvlr", seed, 40.0 + seed, cell))
            if (noise, shift) != ("0.4", "1"):
                rows.append(row("ace", seed, 40.0 + seed + offset + (seed - 1), cell))
    rows += [row(f"{m} world.domain_shift=1", 0, 9.0, "grid verb_noise=0.6") for m in ("ace", "procvlr")]
    keys, cells = gains(rows, "ace", "procvlr")
    assert keys == ("verb_noise", "domain_shift") and cells["0.4", "1"] == {}
    for cell, offset in offsets.items():
        if cells[cell]:
            found = cells[cell]["srt_accuracy_std"]
            assert found.mean == pytest.approx(offset) and found.high - offset == pytest.approx(4.302653 / math.sqrt(3))
    assert str(cells["0.6", "1"]["novel_accuracy"]) == "+0.0 (one seed)"
    with pytest.raises(RunError, match="not those of the other rows"):
        gains([*rows, row("ace", 0, 1.0, "grid verb_noise=0.2")], "ace", "procvlr")
    write_rows([row("ace", 0, 1.0), *rows], tmp_path / "runs.csv")
    launch("report", "grid=ace", "experiment=grid", "reference=procvlr", f"output={tmp_path}")
    page = (tmp_path / "grid_gain.md").read_text()
    assert "| 0.4 | 1 | 0 | - | - | - |" in page and page.count(".png)") == 1 == len(list(tmp_path.glob("*.png")))
    done = launch("report", "grid=bike", "experiment=grid", "reference=procvlr", f"output={tmp_path}", check=False)
    assert done.returncode == 2 and "no seed of grid has both bike and procvlr" in done.stderr
