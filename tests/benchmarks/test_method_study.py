"""Protects the plan of the search for a recipe: every row is a command that composes; none that is there runs again."""

import sys
from pathlib import Path

import pytest

from ace_dist.config import load_config
from ace_dist.tools.study.selection import SIGNALS, CellRow, write_cell_rows
from ace_dist.utils.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import method_study


@pytest.mark.parametrize("name", method_study.CANDIDATES)
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
    assert len(screening) == 9 * len(method_study.CANDIDATES) == len({row.run(tmp_path) for row in screening})
    full = list(method_study.planned(method_study.Settings(stage="full")))
    assert len(full) == 130 * len(method_study.ROWS)
    assert {row.seed for row in screening}.isdisjoint(row.seed for row in full)
    for row in full[: len(method_study.ROWS)]:
        config = load_config(row.settings(tmp_path))
        assert config.evaluation.test and not config.evaluation.validation_words and config.method.name == row.name
    signal = method_study.PlannedRow("signal", "long 0 1 minilm", "ace", 0)
    config = load_config(signal.settings(tmp_path))
    assert config.evaluation.test and config.evaluation.validation_words == 0.4
    assert config.model.text.tower == "minilm" and config.model.text.weights.endswith("long_0_minilm/text.safetensors")
    with pytest.raises(ConfigError, match="candidate=acee is not one of ace"):
        list(method_study.planned(method_study.Settings(candidate="acee")))


def test_rows_that_are_there_are_not_run_again(tmp_path, monkeypatch, capsys):
    """Of two seeds the missing one is printed; the report shows the other's difference to ACE."""
    monkeypatch.setattr(method_study, "RESULTS", tmp_path / "runs.csv")
    cell = method_study.SCREENING_CELLS[0]
    scores = dict.fromkeys(SIGNALS, 50.0)
    rows = [CellRow(cell, "screening", "ace", 100, scores)]
    rows += [CellRow(cell, "screening", "margin_0.1", 100, scores | {SIGNALS[2]: 53.5})]
    write_cell_rows(rows, tmp_path / "runs.csv")
    asked = ["stage=screening", f"cell={cell}", "candidate=margin_0.1", "dry_run=true", f"folder={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["method_study.py", *asked])
    method_study.main()
    said = capsys.readouterr().out
    assert "margin_0.1_101" in said and "margin_0.1_102" in said and "margin_0.1_100" not in said
    monkeypatch.setattr(sys, "argv", ["method_study.py", "report=true"])
    method_study.main()
    said = capsys.readouterr().out
    assert "+3.5 (one seed)" in said and "nothing to rank" in said
