"""Protects the choice of a recipe: the rule of the protocol, written a second time here, on random rows with ties."""

from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import ttest_rel

from ace_dist.tools.study.screening import (
    Combination,
    Design,
    combination_lines,
    combine,
    screen,
    screening_lines,
)
from ace_dist.tools.study.selection import SIGNALS, CellRow

CANDIDATES = {"a": {"a1": ["x=1"], "a2": ["x=2", "y=2"]}, "b": {"b1": ["z=1"]}, "c": {"c1": ["w=1"], "c2": ["w=2"]}}
CANDIDATES |= {"d": {"d1": ["u=1"]}, "e": {"e1": ["v=1", "t=1"]}}
DESIGN = Design("ace", CANDIDATES, ("near", "far", "flat"), (100, 101, 102))
NAMES = [name for options in CANDIDATES.values() for name in options]


def cell_row(cell, name, seed, accuracy, mean, spread):
    scores = dict(zip(SIGNALS, (accuracy, -accuracy, mean, spread), strict=True))
    return CellRow(cell, "screening", name, seed, scores)


def rows_of(name, table):
    """A table: cells x seeds x (accuracy, mean, spread)."""
    return [
        cell_row(cell, name, seed, *map(float, table[i][j]))
        for i, cell in enumerate(DESIGN.cells)
        for j, seed in enumerate(DESIGN.seeds)
    ]


def level(gain, accuracy=0, spread=5):
    """A table that is 60 everywhere, moved."""
    return [[(90 + accuracy, 60 + gain, spread)] * 3] * 3


def rule(tables):
    """The protocol's rule with exact fractions: the names that stay, the largest difference first."""
    places = [(i, j) for i in range(3) for j in range(3)]

    def moved(name, score, where):
        return Fraction(sum(int(tables[name][i][j][score]) - int(tables["ace"][i][j][score]) for i, j in where))

    def order(name):
        settings = next(len(options[name]) for options in CANDIDATES.values() if name in options)
        return -moved(name, 1, places), sum(int(tables[name][i][j][2]) for i, j in places), settings

    passed = []
    for options in CANDIDATES.values():
        best = min(options, key=order)
        guard = all(moved(best, 0, [(i, j) for j in range(3)]) / 3 >= -2 for i in range(3))
        if moved(best, 1, places) > 0 and guard:
            passed.append(best)
    return sorted(passed, key=order)[:3]


def test_the_rule_is_the_protocols_on_random_rows(rng):
    """Whole numbers of few values: equal means, equal spreads and losses of just two points come up."""
    for _ in range(50):
        draws = [rng.integers(89, 93, (3, 3)), rng.integers(59, 62, (3, 3)), rng.integers(4, 6, (3, 3))]
        tables = {"ace": np.stack(draws, -1)}
        for name in NAMES:
            tables[name] = tables["ace"] + rng.integers([-3, -1, -1], [2, 3, 2], (3, 3, 3))
        rows = [row for name, table in tables.items() for row in rows_of(name, table)]
        found = screen([rows[i] for i in rng.permutation(len(rows))], DESIGN)
        assert list(found.kept) == rule(tables) and not found.missing
        assert [name for name in NAMES if found.verdicts[name] == "stays"] == sorted(rule(tables), key=NAMES.index)
        lines = screening_lines(found, DESIGN)
        assert not any("decided" in line for line in lines) and len(lines) == 2 + len(NAMES) + 2


def test_every_verdict_says_why():
    tables = {"ace": level(0), "a1": level(1), "a2": level(1, spread=4), "b1": level(0), "c1": level(9, accuracy=-3)}
    tables |= {"c2": level(2), "d1": level(3, accuracy=-2), "e1": level(0.5)}
    tables["c1"] = [tables["c1"][0], *level(9)[1:]]
    found = screen([row for name, table in tables.items() for row in rows_of(name, table)], DESIGN)
    assert found.kept == ["d1", "a2", "e1"]
    assert found.verdicts == {
        "a1": "out: a2 is the better value",
        "a2": "stays",
        "b1": "out: its mean difference is not above 0",
        "c1": "out: base accuracy 3.0 points below in near",
        "c2": "out: c1 is the better value",
        "d1": "stays",
        "e1": "stays",
    }


def test_a_fourth_goes_and_of_equals_the_one_with_fewer_settings_stays():
    tables = {"ace": level(0), "b1": level(3), "d1": level(2), "a1": level(0), "a2": level(1)}
    tables |= {"e1": level(1), "c1": level(1), "c2": level(-1)}
    found = screen([row for name, table in tables.items() for row in rows_of(name, table)], DESIGN)
    assert found.kept == ["b1", "d1", "c1"]
    assert found.verdicts["a2"] == found.verdicts["e1"] == "out: 3 have a larger difference"


def test_intervals_are_of_seeds_means_over_cells(rng):
    ace, own = rng.normal(60, 5, (2, 3, 3))
    rows = [
        cell_row(cell, name, seed, 90, table[i, j], 5)
        for name, table in (("ace", ace), ("b1", own))
        for i, cell in enumerate(DESIGN.cells)
        for j, seed in enumerate(DESIGN.seeds)
    ]
    found = screen(rows, DESIGN).values["b1"]
    wanted = ttest_rel(own.mean(0), ace.mean(0)).confidence_interval(0.95)
    assert (found.gain.low, found.gain.high) == pytest.approx(wanted)
    assert found.gain.mean == pytest.approx(np.mean([gain.mean for gain in found.gains.values()]))
    wanted = ttest_rel(own[1], ace[1]).confidence_interval(0.95)
    assert (found.gains["far"].low, found.gains["far"].high) == pytest.approx(wanted)


def test_an_incomplete_screening_decides_nothing_and_says_so():
    """One row of 72 is missing, another has no signal, and rows of other seeds and stages do not count."""
    rows = [row for name in ("ace", *NAMES) for row in rows_of(name, level(name == "b1"))]
    rows[0] = CellRow("near", "screening", "ace", 100, {SIGNALS[0]: 90.0})
    rows = [*rows[:-1], cell_row("near", "ace", 7, 0, 0, 0), CellRow("near", "full", "ace", 100, rows[1].scores)]
    found = screen(rows, DESIGN)
    assert (found.missing, found.planned, found.values["b1"].pairs) == (2, 72, 8)
    assert found.values["b1"].gain.n == 2, "a seed without one cell is left out of the mean over cells"
    lines = screening_lines(found, DESIGN)
    assert lines[0].startswith("**Nothing is decided: 2 of 72 rows are missing.**") and lines[-1] == "So far: b1."
    empty = screen([], DESIGN)
    assert empty.missing == 72 and not empty.kept and set(empty.verdicts.values()) == {"-"}


def combined(gains, without=()):
    """Screening in which d1, b1, c1 stay in this order, with rows of the combinations in `gains`."""
    tables = {"ace": level(0), "d1": level(3), "b1": level(2), "c1": level(1)}
    tables |= {name: level(-1) for name in NAMES if name not in tables}
    tables |= {name: level(gain) for name, gain in gains.items()}
    rows = [row for name, table in tables.items() for row in rows_of(name, table)]

    def conflict(parts):
        return "they are one setting" if parts[-1] in without else ""

    return combine(rows, DESIGN, screen(rows, DESIGN), conflict)


def test_parts_are_added_while_they_raise_the_mean():
    assert combined({}) == Combination(("d1",), [("d1", "the largest difference")], "d1+b1")
    assert combined({"d1+b1": 4}).wanted == "d1+b1+c1"
    assert combined({"d1+b1": 3}).wanted == "d1+c1", "an equal mean is no higher one"
    assert combined({"d1+b1": 4, "d1+b1+c1": 4}).recipe == ("d1", "b1")
    assert combined({"d1+b1": 2, "d1+c1": 3.5}).recipe == ("d1", "c1")
    assert combined({"d1+b1": 4, "d1+b1+c1": 5}).recipe == ("d1", "b1", "c1")
    assert combined({"d1+c1": 2}, without=["b1"]).recipe == ("d1",)
    lines = combination_lines(combined({"d1+c1": 5}, without=["b1"]))
    assert lines[1] == "- b1: left out: they are one setting" and lines[-1] == "- recipe: d1 + c1"
    assert "without it +3.0 [+3.0, +3.0]" in lines[2]
    assert "next: d1+b1" in combination_lines(combined({}))[-1]
    nothing = screen([row for name in ("ace", *NAMES) for row in rows_of(name, level(0))], DESIGN)
    assert "none: plain ACE" in combination_lines(combine([], DESIGN, nothing, lambda parts: ""))[0]
