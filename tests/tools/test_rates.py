"""The search for learning rates: the rule by hand, what it asks for next, and the whole command on a tiny world."""

import json
import os
from types import SimpleNamespace

import pytest

from ace_dist.cli import execute
from ace_dist.cluster.profiles import ClusterConfig
from ace_dist.cluster.sweep import Sweep, SweepRun
from ace_dist.config import load_config
from ace_dist.tools.study import rates
from ace_dist.tools.study.rates import Score, build_searches, chosen_rate, wanted_rates
from ace_dist.utils.errors import ConfigError, RunError


def found(*pairs):
    return {rate: Score(value, value, 100) for rate, value in pairs}


def test_the_smallest_rate_within_one_standard_error_is_taken():
    """Best 90 % of 100 clips: sqrt(0.9 * 0.1 / 100) = 3 points, so 87 % is as good and 86.9 % is not."""
    assert chosen_rate(found((1.0, 86.9), (4.0, 87.0), (16.0, 90.0))) == 4.0
    assert chosen_rate(found((1.0, 100.0), (4.0, 100.0), (16.0, 99.0))) == 1.0  # no error at 100 %


def test_the_search_goes_up_while_the_largest_is_best():
    assert wanted_rates({}, 0.02) == [0.005, 0.02, 0.08]
    assert wanted_rates(found((0.005, 50.0)), 0.02) == [0.02, 0.08]
    assert wanted_rates(found((0.005, 50.0), (0.02, 60.0), (0.08, 55.0)), 0.02) == []
    assert wanted_rates(found((0.005, 50.0), (0.02, 60.0), (0.08, 65.0)), 0.02) == [0.32]
    rising = found(*((0.02 * 4.0**k, 50.0 + k) for k in range(-1, 6)))
    assert wanted_rates(rising, 0.02) == []  # 1,024 times the recipe's is the end


def finish(search, folder, run, accuracy):
    """A finished run of the search."""
    validation = {"accuracy": accuracy, "f1": 100 - accuracy, "clips": 100}  # which the rule does not ask
    (folder / run.id).mkdir(parents=True)
    (folder / run.id / "results.json").write_text(json.dumps({"validation": validation}))


def test_video_first_then_text_at_the_rate_taken(tmp_path):
    """ACE: three video rates, then text rates at the video rate that was taken; no test in any of them."""
    (search,) = build_searches(["method=ace", "dataset=tabletop"], tmp_path)
    for side, best in (("lr_video", 1), ("lr_text", 0)):
        runs = search.wanted()
        known = 1 if side == "lr_text" else 0  # the recipe's text rate was tried with the video rates
        assert len(runs) == 3 - known
        for place, run in enumerate(runs):
            config = load_config(run.overrides)
            assert not config.evaluation.test and config.evaluation.validation_share == 0.25 and config.seed == 100
            finish(search, tmp_path, run, 90.0 if place == best else 50.0)
    assert search.wanted() == []
    assert search.settings_to_use() == "training.lr_video=0.08 training.lr_text=0.05"
    assert [row[1:3] for row in search.rows()] == [
        ["0.02", "0.2"], ["0.08", "0.05"], ["0.08", "0.2"], ["0.08", "0.8"], ["0.32", "0.2"],
    ]  # fmt: skip


def test_a_run_without_its_validation_is_named(tmp_path):
    """An earlier `ace evaluate` put the test in its place."""
    (search,) = build_searches(["method=ace", "dataset=tabletop"], tmp_path)
    finish(search, tmp_path, search.wanted()[0], 90.0)
    (path,) = tmp_path.glob("*/results.json")
    path.write_text("{}")
    with pytest.raises(RunError, match=r"results\.json has no validation, .* delete it"):
        search.wanted()


def test_what_starts_anew_keeps_its_ratio(tmp_path):
    """Text4Vis gives its transformer over frames ten times the image tower's rate; no text trains."""
    (search,) = build_searches(["method=text4vis", "dataset=gtea"], tmp_path)
    configs = [load_config(run.overrides).training for run in search.wanted()]
    assert [c.lr_new / c.lr_video for c in configs] == pytest.approx([10.0] * 3)
    for run, accuracy in zip(search.wanted(), (10.0, 60.0, 10.0), strict=True):
        finish(search, tmp_path, run, accuracy)
    assert search.wanted() == [] and "training.lr_new=5e-05" in search.settings_to_use()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["dataset=tabletop"], "needs method=NAME and dataset=NAME"),
        (["method=ace", "dataset=kitchen"], "one of tabletop, ata, ikea, gtea"),
        (["method=random", "dataset=tabletop"], "method=random does not train"),
    ],
)
def test_searches_that_cannot_be(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        build_searches(settings, tmp_path)


def test_a_search_whose_runs_another_process_trains_ends(tmp_path, monkeypatch, capsys):
    """It has nothing to do until they end, and must not ask for them again without pause."""
    asked = iter([[SweepRun("run", {}, ["seed=1"])]])
    search = SimpleNamespace(wanted=lambda: next(asked))
    monkeypatch.setattr(rates, "build_searches", lambda *_: [search])
    sweep = Sweep(tmp_path / "s")
    (run,) = sweep.add([SweepRun("run", {}, ["seed=1"])])
    sweep.note_submission(ClusterConfig(kind="local"), [run])
    sweep.note_jobs({"run": str(os.getpid())}, "local")  # a process that lives
    assert execute(["sweep", "search=rates", "sweep=s", f"folder={tmp_path}"]) == 0
    assert "next     the same command, when these runs have ended" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_searches_to_its_end(small_world, launch, tmp_path):
    """ProcVLR on a tiny world: at least three trainings, each scored on held-out people and never tested."""
    settings = ["search=rates", "method=procvlr", "dataset=tabletop", f"folder={tmp_path}", *small_world()]
    short = ["training.max_steps=1", "training.batch_size=2", "training.device=cpu"]
    said = launch("sweep", *settings, *short).stdout
    assert "method=procvlr training.lr_video=" in said
    runs = [json.loads(path.read_text()) for path in tmp_path.glob("rates_procvlr_tabletop/*/results.json")]
    assert len(runs) >= 3 and all(run["base"] is None and run["validation"]["clips"] > 0 for run in runs)
    assert not list(tmp_path.glob("**/predictions.json"))
    lines = (tmp_path / "rates_procvlr_tabletop/rates.csv").read_text().splitlines()
    assert lines[0] == "method,lr_video,lr_text,base_accuracy,base_f1,clips" and len(lines) == len(runs) + 1
