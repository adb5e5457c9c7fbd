"""Protects the full test of a recipe: its statistics against SciPy and by the definition, its verdicts by hand."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.stats import ttest_rel

from ace_dist.tools.study.comparisons import (
    MEAN,
    SEEN,
    SPREAD,
    UNSEEN,
    FullTest,
    by_cell,
    family,
    forest,
    full_test_lines,
    goals,
    holm,
    paired_p,
    units,
)
from ace_dist.tools.study.drawing import SCORES
from ace_dist.tools.study.selection import CellRow

ROWS = ("ace", "procvlr", "vifi_ft", "vifi_pr", "text4vis", "bike", "lavila")
TEST = FullTest("ace_plus", ROWS, "procvlr", ["ace_plus without distil_1"], ("c1", "c2", "c3"), range(10))
FRESH = FullTest("ace_plus", ROWS, "procvlr", [], ("new",), range(10))
METHODS = (TEST.recipe, *ROWS, *TEST.ablations)
LEVELS = {SEEN: 85.0, UNSEEN: 50.0, MEAN: 52.0, SPREAD: 6.0}


def all_rows(score_of, cells=TEST.cells):
    """A row for every method, cell and seed; `score_of(method, cell, seed)`: the scores that differ from `LEVELS`."""
    return [
        CellRow(cell, "full", method, seed, LEVELS | score_of(method, cell, seed))
        for method, cell, seed in product(METHODS, cells, TEST.seeds)
    ]


def ahead(seed, gain=5.0):
    """Scores of a recipe that is ahead in all; seeds differ a little, so that there is an interval."""
    wave = 0.1 * (seed % 3)
    return {SEEN: 85.5 + wave, UNSEEN: 50 + gain + wave, MEAN: 52 + gain - wave, SPREAD: 5 - wave}


def verdicts(score_of):
    rows = all_rows(score_of)
    return {
        goal.name.split()[0]: (goal.verdict, goal.finding)
        for goal in goals(rows, family(units(rows, TEST), TEST), TEST)
    }


def adjusted(p_values, size):
    """Holm's adjusted p by its definition: the running maximum of (m - k) p over the sorted values."""
    order, most, found = np.argsort(p_values), 0.0, [0.0] * len(p_values)
    for place, index in enumerate(order):
        most = max(most, min(1.0, (size - place) * p_values[index]))
        found[index] = most
    return found


def test_holm_is_its_definition(rng):
    for _ in range(300):
        p_values = list(rng.random(int(rng.integers(1, 17))) ** 6)
        size = len(p_values) + int(rng.integers(0, 3))
        assert holm(p_values, size) == [value <= 0.05 for value in adjusted(p_values, size)]
    assert holm([0.01, 0.04, 0.03], 3) == [True, False, False], "0.03 is above 0.05 / 2, so all behind it stay"
    assert holm([0.025, 0.02], 2) == [True, True] and holm([0.025, 0.02], 3) == [False, False]


def test_p_is_scipys(rng):
    a, b = rng.normal(50, 4, (2, 10))
    assert paired_p(list(a - b)) == pytest.approx(ttest_rel(a, b).pvalue)
    assert paired_p([1.0, 1.0]) == 0 and paired_p([0.0, 0.0]) == 1


def test_the_family_is_of_seeds_means_over_cells(rng):
    """16 comparisons, each SciPy's paired test of ten means, with intervals of 1 - 0.05/16."""
    tables = {method: {score: rng.normal(50, 3, (3, 10)) for score in SCORES} for method in METHODS}

    def score_of(method, cell, seed):
        return {score: float(table[TEST.cells.index(cell), seed]) for score, table in tables[method].items()}

    rows = all_rows(score_of)
    rows += [CellRow("c1", "signal", "ace", 0, LEVELS), CellRow("c1", "full", "ace", 77, LEVELS)]
    found = family(units([rows[i] for i in rng.permutation(len(rows))], TEST), TEST)
    assert [one.score for one in found] == [UNSEEN] * 7 + [MEAN] * 7 + [SPREAD, SEEN]
    assert found[14].other == min(ROWS, key=lambda row: tables[row][SPREAD].mean())
    assert found[15].other == max(ROWS, key=lambda row: tables[row][SEEN].mean())
    wanted = [ttest_rel(tables["ace_plus"][one.score].mean(0), tables[one.other][one.score].mean(0)) for one in found]
    for one, test in zip(found, wanted, strict=True):
        assert one.p == pytest.approx(test.pvalue) and one.difference.n == 10
        bounds = test.confidence_interval(1 - 0.05 / 16)
        assert (one.difference.low, one.difference.high) == pytest.approx((bounds.low, bounds.high))
    assert [one.certain for one in found] == [p <= 0.05 for p in adjusted([test.pvalue for test in wanted], 16)]


def test_a_recipe_that_wins_reaches_every_part():
    found = verdicts(lambda method, cell, seed: ahead(seed) if method == "ace_plus" else {})
    assert {name: verdict for name, (verdict, _) in found.items()} == dict.fromkeys(found, "reached") and len(
        found
    ) == 4
    assert found["ahead"][1] == "ahead in 14 of 14"


def test_each_part_fails_alone():
    """Not ahead of one row; less even than the evenest; 2.1 points lost in one cell; seen 1.1 below the best."""

    def losing(row, scores, where=TEST.cells):
        def score_of(method, cell, seed):
            if method == "ace_plus":
                return ahead(seed)
            return (
                {score: ahead(seed)[score] + plus for score, plus in scores.items()}
                if (method == row and cell in where)
                else {}
            )

        return verdicts(score_of)

    for name, row, scores, where, words in (
        ("ahead", "vifi_ft", {UNSEEN: 0.0}, TEST.cells, "13 of 14; not of ViFi-CLIP in novel (+0.0"),
        ("SRT", "bike", {SPREAD: -0.1}, TEST.cells, "against BIKE in SRT spread (+0.1"),
        ("no", "procvlr", {UNSEEN: 2.1}, ["c2"], "novel in c2: -2.1"),
        ("seen", "lavila", {SEEN: 1.1}, TEST.cells, "against LaViLa in base (-1.1"),
    ):
        found = losing(row, scores, where)
        assert {part: verdict for part, (verdict, _) in found.items() if verdict != "reached"} == {name: "not reached"}
        assert words in found[name][1], found[name]
    assert losing("lavila", {SEEN: 1.0})["seen"][0] == "reached"
    assert losing("procvlr", {UNSEEN: 2.0}, ["c2"])["no"] == ("reached", "least novel in c2: -2.0 [-2.0, -2.0]")


def test_a_bound_that_only_the_mean_keeps_says_so():
    """Spread 0.1 smaller on average, and 2 larger in every second seed."""

    def score_of(method, cell, seed):
        return ahead(seed) | {SPREAD: 5.9 + 2 * (-1) ** seed} if method == "ace_plus" else {}

    verdict, finding = verdicts(score_of)["SRT"]
    assert verdict == "reached" and finding.endswith("by its mean; its interval leaves the bound")


def test_a_loss_in_a_fresh_cell_is_a_loss():
    """Gains in another one do not hide it, and the page says where it is."""

    def score_of(method, cell, seed):
        gain = {"new": -6.0, "newer": 14.0}.get(cell, 5.0)
        return ahead(seed, gain) if method == "ace_plus" else {}

    fresh = replace(FRESH, cells=("new", "newer"))
    page = "\n".join(full_test_lines(all_rows(score_of, [*TEST.cells, *fresh.cells]), TEST, fresh))
    (line,) = (line for line in page.splitlines() if line.startswith("| no cell"))
    assert "not reached" in line and "novel in new: -5." in line and "SRT mean in new: -6." in line
    assert page.split("### Fresh cells")[1].count("| new |") == 2


def test_missing_rows_give_no_verdict(tmp_path):
    """One row of LaViLa is missing: only the part that compares with ProcVLR alone is judged."""
    rows = all_rows(lambda method, cell, seed: ahead(seed) if method == "ace_plus" else {})
    rows = [row for row in rows if (row.method, row.cell, row.seed) != ("lavila", "c2", 3)]
    found = {goal.name.split()[0]: goal.verdict for goal in goals(rows, family(units(rows, TEST), TEST), TEST)}
    assert found == {"ahead": "missing rows", "SRT": "missing rows", "no": "reached", "seen": "missing rows"}
    page = "\n".join(full_test_lines(rows, TEST, FRESH))
    assert "**Rows are missing** (30 are planned of each): LaViLa 1." in page and "| LaViLa | 9 |" in page
    assert "**Rows are missing** (10 are planned of each): ACE+ 10, ACE 10" in page
    empty = "\n".join(full_test_lines([], TEST, FRESH))
    assert empty.count("missing rows") == 4 and forest([], TEST) is None


def test_the_page_and_its_figure_have_every_part():
    rows = all_rows(lambda method, cell, seed: ahead(seed) if method == "ace_plus" else {}, [*TEST.cells, "new"])
    page = "\n".join(full_test_lines(rows, TEST, FRESH))
    assert page.count("| reached |") == 4 and "missing" not in page and "99.69 %" in page
    assert "| SRT mean | ViFi-CLIP, prompts | +4.9 [" in page and "| SRT spread | ACE | -1.1 [" in page
    assert "| ACE+, without distil_1 | +0.6 [" in page.split("### Ablations")[1].split("###")[0]
    assert page.split("### Fresh cells")[1].count("| Text4Vis |") == 4
    assert by_cell(rows, TEST, "ace")["c1"][UNSEEN].mean == pytest.approx(5.09)
    figure = forest(rows, TEST)
    assert figure.get_suptitle() == "Under other words ACE+ is ahead of 7 of 7 rows, behind 0"
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(figure.axes) == 4 and sorted(names)[0] == "ACE" and "ProcVLR" in names
