"""Protects the comparison of selection rules: rank correlations against SciPy and by hand, on rows made for it."""

import multiprocessing

import numpy as np
import pytest
from scipy.stats import spearmanr

from ace_dist.tools.study.selection import (
    COLUMNS,
    RULES,
    CellRow,
    add_cell_row,
    correlate,
    rank_correlations,
    read_cell_rows,
    write_cell_rows,
)
from ace_dist.utils.errors import RunError


def row(cell, method, seed, target, accuracy, mean, spread):
    scores = {"srt_accuracy_mean": target, "validation_accuracy": accuracy, "validation_f1": -accuracy}
    scores |= {"validation_srt_accuracy_mean": mean, "validation_srt_accuracy_std": spread}
    return CellRow(cell, "full", method, seed, scores)


def test_a_rule_that_ranks_as_the_target_does_has_one_and_its_opposite_minus_one():
    """Two cells of very different level: base SRT ranks as the target within each, base accuracy the other way round;
    over both cells together base accuracy would rank well."""
    rows = []
    for cell, level in (("easy", 80.0), ("hard", 20.0)):
        for seed in range(4):
            for number, method in enumerate(("a", "b", "c")):
                rows.append(row(cell, method, seed, level + number, level - number, level + 3 * number, 1.0))
    found = rank_correlations(rows, resamples=50)
    assert found["base SRT mean"].mean == found["base SRT mean"].low == pytest.approx(1)
    assert found["base accuracy"].mean == found["base accuracy"].high == pytest.approx(-1)
    assert found["base SRT mean - spread"].mean == pytest.approx(1)
    assert (found["base SRT mean"].cells, found["base SRT mean"].runs) == (2, 24)


def test_correlations_are_scipys_with_ties(rng):
    table = np.column_stack([np.zeros(12), rng.integers(0, 6, (12, 1 + len(RULES))).astype(float)])
    table[:3, 1:] = [[0] * 4, [1] * 4, [2] * 4]  # no column is constant
    wanted = [spearmanr(table[:, 1], table[:, column]).statistic for column in range(2, table.shape[1])]
    assert correlate(table) == pytest.approx(wanted)
    table[:, 2] = 5
    assert correlate(table)[0] == 0, "a rule that says the same of all runs ranks nothing"


def test_the_interval_widens_when_seeds_disagree():
    """Ten seeds that all rank alike, against ten of which every second ranks the other way round."""

    def rows(turn):
        return [
            row("cell", method, seed, 50 + number, 0, (-1) ** (seed * turn) * number, 0)
            for seed in range(10)
            for number, method in enumerate("abcd")
        ]

    steady, mixed = (rank_correlations(rows(turn), resamples=200)["base SRT mean"] for turn in (0, 1))
    assert steady.low == steady.high == pytest.approx(1)
    assert mixed.low < 0 < mixed.high and mixed.mean == pytest.approx(0, abs=1e-9)


def test_cells_that_agree_in_each_seed_are_no_more_seeds():
    """The signal of a seed is that of its people and words, in every cell: ten equal cells know what one knows."""

    def rows(cells):
        return [
            row(f"cell {cell}", method, seed, 50 + number, 0, (-1) ** (seed > 6) * number, 0)
            for cell in range(cells)
            for seed in range(10)
            for number, method in enumerate("abcd")
        ]

    one, ten = (rank_correlations(rows(cells), resamples=500)["base SRT mean"] for cells in (1, 10))
    assert (ten.mean, ten.low, ten.high) == pytest.approx((one.mean, one.low, one.high))


def test_rows_come_back_and_a_run_has_one_row(tmp_path):
    path = tmp_path / "runs.csv"
    first, again = row("c", "ace", 0, 50.12345, 90, 60, 5), row("c", "ace", 0, 51, 91, 61, 6)
    screening = CellRow("c", "screening", "ace", 0, {"validation_accuracy": 88.0})
    write_cell_rows([first, screening, again], path)
    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)
    found = read_cell_rows(path)
    assert [(one.experiment, one.scores["srt_accuracy_mean"]) for one in found] == [("full", 51.0), ("screening", None)]
    with pytest.raises(RunError, match="nothing to rank"):
        rank_correlations(found)
    path.write_text(path.read_text().replace("91.0000", "many"))
    with pytest.raises(RunError, match="line 2"):
        read_cell_rows(path)
    path.write_text(",".join(COLUMNS) + "\nc\n")
    with pytest.raises(RunError, match="line 2"):
        read_cell_rows(path)
    path.write_text("cell,method\n")
    with pytest.raises(RunError, match="expected the columns cell,experiment"):
        read_cell_rows(path)
    assert read_cell_rows(tmp_path / "none.csv") == []


def add_rows(path, start, method):
    """In a process of its own: begins when all have come."""
    start.wait(60)
    for seed in range(15):
        add_cell_row(row("cell", method, seed, 50, 90, 60, 5), path)


def test_processes_that_write_at_once_lose_no_row(tmp_path):
    """Reading all, adding one and writing all back loses the rows of others unless each waits for its turn."""
    context = multiprocessing.get_context("fork")
    path, start = tmp_path / "new" / "runs.csv", context.Barrier(3)
    processes = [context.Process(target=add_rows, args=(path, start, method)) for method in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    found = [(one.method, one.seed) for one in read_cell_rows(path)]
    assert sorted(found) == [(method, seed) for method in "abc" for seed in range(15)]
