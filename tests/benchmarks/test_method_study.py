"""Protects the plan of the search for a recipe: every row is a command that composes; none that is there runs again."""

import json
import sys
from pathlib import Path

import pytest

from ace_dist.config import load_config
from ace_dist.tools.study.rows import SCORES
from ace_dist.tools.study.selection import SIGNALS, CellRow, read_cell_rows, write_cell_rows
from ace_dist.utils.errors import ConfigError, RunError
from ace_dist.utils.files import read_log
from ace_dist.utils.locks import lock

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import method_study

FIRST = method_study.SCREENING_CELLS[0]


@pytest.mark.parametrize("name", ["ace", *method_study.VALUES])
def test_a_candidate_is_ace_and_its_own_settings(name, tmp_path):
    """Screened without a test; the first candidate is plain ACE, and all others differ from it."""
    row = method_study.PlannedRow("screening", "long 0.4 1 clip", name, 100)
    config = load_config(row.settings(tmp_path))
    assert not config.evaluation.test and config.evaluation.validation_words == 0.4 and config.method.name == "ace"
    plain = load_config(method_study.PlannedRow("screening", row.cell, "ace", 100).settings(tmp_path))
    config.run = plain.run
    assert (config == plain) == (name == "ace")


def test_the_plan_is_the_protocols(tmp_path):
    """3 cells x 3 seeds of every candidate, 13 x 10 of every method; the full test uses all words and people."""
    screening = list(method_study.planned(method_study.Settings()))
    assert len(screening) == 9 * (1 + len(method_study.VALUES)) == len({row.run(tmp_path) for row in screening})
    full = list(method_study.planned(method_study.Settings(stage="full")))
    assert len(full) == 130 * (len(method_study.ROWS) + len(method_study.recipe_rows()))
    assert {row.seed for row in screening}.isdisjoint(row.seed for row in full)
    for row in full[: len(method_study.ROWS)]:
        config = load_config(row.settings(tmp_path))
        assert config.evaluation.test and not config.evaluation.validation_words and config.method.name == row.name
    signal = method_study.PlannedRow("signal", "long 0 1 minilm", "ace", 0)
    config = load_config(signal.settings(tmp_path))
    assert config.evaluation.test and config.evaluation.validation_words == 0.4
    assert config.model.text.tower == "minilm" and config.model.text.weights.endswith("long_0_minilm/text.safetensors")
    assert config.training.lr_text == 0.002
    with pytest.raises(ConfigError, match="candidate=acee is not one of ace"):
        list(method_study.planned(method_study.Settings(candidate="acee")))


@pytest.mark.parametrize(("name", "file", "rate"), [("vifi_pr", "vit", 2e-3), ("lavila", "spacetime", 2.5e-5)])
def test_baselines_start_from_the_cells_towers_at_their_own_rates(name, file, rate, tmp_path):
    """Each in its own video network; MiniLM has no learned prompts, and would refuse them."""
    config = load_config(method_study.PlannedRow("full", "flat 0 1 minilm", name, 0).settings(tmp_path))
    assert config.model.video.weights.endswith(f"towers/flat_0_minilm/{file}.safetensors")
    assert (config.training.lr_text, config.model.text.prompt_tokens) == (rate, 0)
    shipped = load_config(method_study.PlannedRow("full", "long 0.4 0 clip", name, 0).settings(tmp_path))
    assert shipped.model.video.weights.endswith(f"assets/weights/tabletop/{file}.safetensors")
    assert bool(shipped.model.text.prompt_tokens) == (name == "vifi_pr")


def test_a_cell_is_made_once_and_from_its_own_corpus(tmp_path, monkeypatch):
    """Clips, towers and the baselines' files, in this order; what is there is not made again."""
    made = []

    def run_command(words):
        made.append(words[1:])
        settings = dict(word.split("=", 1) for word in words[2:])
        if path := settings.get("dataset.shards"):
            names = [Path(path) / "manifest.json"]
        elif path := settings["output"]:
            names = [Path(path)] if path.endswith(".safetensors") else [Path(path) / "text.safetensors"]
        names[0].parent.mkdir(parents=True, exist_ok=True)
        names[0].touch()

    monkeypatch.setattr(method_study, "run_command", run_command)
    method_study.prepare("flat 0.2 0.75 clip", tmp_path)
    assert [Path(words[0]).stem for words in made] == ["build_shards", "pretrain_tabletop", *["import_weights"] * 2]
    assert "dataset.world.domain_shift=0.75" in made[0] and "dataset.world.corpus.verb_noise=0.2" in made[1]
    assert method_study.FLAT in made[1] and f"source={tmp_path}/towers/flat_0.2_clip/video.safetensors" in made[2]
    method_study.prepare("flat 0.2 0.75 clip", tmp_path)
    assert len(made) == 4
    method_study.prepare("long 0.4 0.75 clip", tmp_path)
    assert len(made) == 4, "shipped towers, clips that are there"


def test_a_fixed_recipe_gives_its_rows(results, tmp_path, monkeypatch, capsys):
    """One line fixes it: the recipe, and it without each part; a recipe of one part has no other ablation than ACE."""
    monkeypatch.setattr(method_study, "RECIPE", ())
    with pytest.raises(ConfigError, match="RECIPE of this script is not fixed"):
        list(method_study.planned(method_study.Settings(stage="full", candidate="ace_plus")))
    monkeypatch.setattr(method_study, "RECIPE", ("distil_1", "ema_0.99"))
    names = [row.name for row in method_study.planned(method_study.Settings(stage="full", seed=0, cell=FIRST))]
    assert names[len(method_study.ROWS) :] == ["ace_plus", "ace_plus without distil_1", "ace_plus without ema_0.99"]
    row = method_study.PlannedRow("full", FIRST, names[-1], 0)
    config = load_config(row.settings(tmp_path))
    assert (config.method.name, config.method.distil, config.training.ema_decay) == ("ace", 1, 0)
    assert row.run(tmp_path).name == "ace_plus_without_ema_0.99_0" and config.evaluation.test
    write_cell_rows(screening({"ace": 0, "margin_0.1": 3.5}), results)
    call(monkeypatch, "report=true")
    said = capsys.readouterr().out
    assert "recipe: margin_0.1" in said and "RECIPE of this script is another one: distil_1 + ema_0.99" in said
    assert said.count("missing rows") == 4
    monkeypatch.setattr(method_study, "RECIPE", ("distil_1",))
    assert list(method_study.recipe_rows()) == ["ace_plus"]


@pytest.fixture
def results(tmp_path, monkeypatch):
    """`runs.csv` of the study in a folder of the test."""
    monkeypatch.setattr(method_study, "RESULTS", tmp_path / "runs.csv")
    return tmp_path / "runs.csv"


def call(monkeypatch, *settings):
    monkeypatch.setattr(sys, "argv", ["method_study.py", *settings])
    method_study.main()


def screening(gains, names=("ace", *method_study.VALUES)):
    """Every row of the screening: 50 of everything, base SRT mean moved by `gains`."""
    scores = dict.fromkeys(SIGNALS, 50.0)
    return [
        CellRow(cell, "screening", name, seed, scores | {SIGNALS[2]: 50.0 + gains.get(name, -1)})
        for name in names
        for cell in method_study.SCREENING_CELLS
        for seed in method_study.SCREENING_SEEDS
    ]


def test_rows_that_are_there_are_not_run_again(results, tmp_path, monkeypatch, capsys):
    """Of two seeds the missing one is printed; the report shows the other's difference to ACE."""
    rows = [row for row in screening({"ace": 0, "margin_0.1": 3.5}) if row.seed == 100 and row.cell == FIRST]
    write_cell_rows(rows, results)
    asked = ["stage=screening", f"cell={FIRST}", "candidate=margin_0.1", f"folder={tmp_path}"]
    call(monkeypatch, *asked, "dry_run=true")
    said = capsys.readouterr().out
    assert "margin_0.1_101" in said and "margin_0.1_102" in said and "margin_0.1_100" not in said
    call(monkeypatch, "report=true")
    said = capsys.readouterr().out
    assert "+3.5 (one seed)" in said and "nothing to rank" in said and "Nothing is decided" in said
    with pytest.raises(RunError, match="rows of the screening are missing; stage=screening"):
        call(monkeypatch, "stage=combine")


def test_the_combinations_follow_from_the_screening(results, monkeypatch, capsys):
    """Two values of one setting and two averages of weights are no recipe; the others are run one after another."""
    gains = {"ace": 0, "shadow_0_0.9": 4, "shadow_0.5_0.9": 3, "distil_1": 2}
    rows = screening(gains)
    write_cell_rows(rows, results)
    (cell, *_), (seed, *_) = method_study.SCREENING_CELLS, method_study.SCREENING_SEEDS
    planned = list(method_study.planned(method_study.Settings(stage="combine")))
    assert {row.name for row in planned} == {"shadow_0_0.9+distil_1"} and len(planned) == 9
    assert planned[0].key == (cell, "screening", "shadow_0_0.9+distil_1", seed)
    config = load_config(planned[0].settings(results.parent))
    assert (config.method.shadow_band, config.method.distil) == ([0, 0.9], 1) and not config.evaluation.test
    assert method_study.conflict(["ema_0.99", "swa_0.75"]) and not method_study.conflict(["ema_0.99", "distil_1"])
    gains |= {"shadow_0_0.9+distil_1": 5}
    write_cell_rows(screening(gains, ["ace", *method_study.VALUES, "shadow_0_0.9+distil_1"]), results)
    assert not list(method_study.planned(method_study.Settings(stage="combine")))
    call(monkeypatch, "report=true", "stage=combine")
    said = capsys.readouterr().out
    assert "shadow_0.5_0.9: left out: it sets method.shadow_band=[0.5,0.9], beside" in said
    assert "recipe: shadow_0_0.9 + distil_1" in said and "rank" not in said


@pytest.fixture
def runs(results, tmp_path, monkeypatch):
    """Runs that write what the study reads, or fail; the names of those that began."""
    began = []

    def run_command(words):
        run = Path(next(word.removeprefix("run=") for word in words if word.startswith("run=")))
        began.append(run.name)
        if run.name.startswith("distil_10"):
            raise RunError(f"exit status 1 of: {run}")
        run.mkdir(parents=True)
        (run / "metrics.jsonl").write_text(json.dumps({"step": 9, **dict.fromkeys(SIGNALS, 60.0)}))
        (run / "results.json").write_text("{}")

    monkeypatch.setattr(method_study, "run_command", run_command)
    monkeypatch.setattr(method_study, "prepare", lambda cell, folder: None)
    monkeypatch.setattr(method_study, "read_metrics", lambda run: read_log(run / "metrics.jsonl")[0])
    return began


def test_a_failed_run_is_named_and_the_others_go_on(runs, results, tmp_path, monkeypatch):
    """Called again, only what failed begins; the rows of a run that had ended are written without another run."""
    asked = [f"folder={tmp_path}", "stage=screening", f"cell={FIRST}", "seed=100"]
    with pytest.raises(SystemExit, match="1 failed; .*\n.*exit status 1 of: .*distil_10_100"):
        call(monkeypatch, *asked)
    assert len(runs) == 1 + len(method_study.VALUES) and len(read_cell_rows(results)) == len(runs) - 1
    write_cell_rows(read_cell_rows(results)[1:], results)
    runs.clear()
    with pytest.raises(SystemExit):
        call(monkeypatch, *asked)
    assert runs == ["distil_10_100"] and len(read_cell_rows(results)) == len(method_study.VALUES)


def test_a_row_that_another_process_runs_is_left_to_it(runs, results, tmp_path, monkeypatch, capsys):
    row = method_study.PlannedRow("screening", FIRST, "ace", 100)
    asked = [f"folder={tmp_path}", f"cell={row.cell}", "seed=100", "candidate=ace"]
    with lock(row.run(tmp_path).with_name("ace_100.lock")):
        call(monkeypatch, *asked)
    assert not runs and "another process runs it" in capsys.readouterr().out
    call(monkeypatch, *asked, "limit_s=1e-9")
    assert not runs and "limit_s is over" in capsys.readouterr().out
    call(monkeypatch, *asked)
    assert runs == ["ace_100"]
    assert read_cell_rows(results) == [CellRow(*row.key, dict.fromkeys([*SCORES]) | dict.fromkeys(SIGNALS, 60.0))]


def test_a_run_without_the_signal_gives_no_row(runs, results, tmp_path, monkeypatch):
    run = method_study.PlannedRow("screening", FIRST, "ace", 100).run(tmp_path)
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text(json.dumps({"step": 9, "validation_accuracy": 90.0}))
    (run / "results.json").write_text("{}")
    asked = [f"folder={tmp_path}", f"cell={FIRST}", "seed=100", "candidate=ace"]
    with pytest.raises(SystemExit, match="has no validation_srt_accuracy_mean; remove the folder"):
        call(monkeypatch, *asked)
    assert not read_cell_rows(results)
