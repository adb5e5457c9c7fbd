"""No CSV file of ours runs in a spreadsheet program, and what we read back is what was written."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ace_dist.tools.study.collect import COLUMNS, Line, Sheet, as_csv, as_latex, as_markdown
from ace_dist.tools.study.rows import SCORES, StudyRow, read_rows, write_rows
from ace_dist.tools.synonyms.sheet import export_sheet, import_sheet
from ace_dist.utils.tables import csv_text, guarded, parse_table, unguarded

RUN = (
    '=HYPERLINK("http://h")',
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    " =1",
    "＝1",
    "'=1",
    "''=1",
)
PLAIN = ("spin block", "-0.5", "+1e-3", "it's", "'quoted'", "", "1.0", "-inf", "a=b", "x@y", "'")


@pytest.mark.parametrize("text", RUN)
def test_a_formula_is_guarded_and_comes_back(text):
    assert guarded(text)[0] == "'" and unguarded(guarded(text)) == text


@pytest.mark.parametrize("text", PLAIN)
def test_other_cells_are_left_alone(text):
    """Numbers with a sign too: a sheet of scores is there to be computed with."""
    assert guarded(text) == text == unguarded(text)


@given(st.text(st.characters(codec="utf-8"), max_size=8) | st.text("'=+-@\t\r\n 1.ea", max_size=6))
def test_every_text_comes_back(text):
    assert unguarded(guarded(text)) == text
    assert not guarded(text).lstrip("'").strip().startswith("=") or guarded(text).startswith("'")


def cells(text):
    return [cell for row in csv.reader(io.StringIO(text)) for cell in row]


def test_annotations_that_we_write_are_read_as_they_were():
    """`convert_ata` writes what the CSV reader reads."""
    rows = [["video", "label"], ["=cmd.mp4", "@spin block"], ["-a.mp4", "+ lift"]]
    text = csv_text(rows)
    assert not [cell for cell in cells(text) if cell[:1] in "=+-@"]
    assert [list(row.values()) for _, row in parse_table(text, ("video", "label"))] == rows[1:]


def test_the_synonym_sheet(tmp_path):
    """Out to a sheet and back: the same trees, no cell that runs."""
    words = ["turn", "=cmd()", "+swivel", "@roll"]
    (tmp_path / "trees.json").write_text(json.dumps({"turn": {word: [word, *words] for word in words}}))
    trees = json.loads((tmp_path / "trees.json").read_text())
    for word, children in trees["turn"].items():
        trees["turn"][word] = list(dict.fromkeys(children))
    (tmp_path / "trees.json").write_text(json.dumps(trees))
    export_sheet(tmp_path / "trees.json", tmp_path / "sheet.csv")
    sheet = (tmp_path / "sheet.csv").read_text(encoding="utf-8-sig")
    assert "'=cmd()" in sheet and not [cell for cell in cells(sheet) if cell[:1] in ("=", "+", "-", "@")]
    changes = import_sheet(tmp_path / "sheet.csv", tmp_path / "trees.json", tmp_path / "back.json", None)
    assert changes == [] and json.loads((tmp_path / "back.json").read_text())["turn"] == trees["turn"]


def test_the_rows_of_a_study(tmp_path):
    rows = [StudyRow("=experiment", "@ace", 3, dict.fromkeys(SCORES, -0.5))]
    write_rows(rows, tmp_path / "runs.csv")
    assert (
        ",-0.5000" in (tmp_path / "runs.csv").read_text()
        and "'=experiment,'@ace" in (tmp_path / "runs.csv").read_text()
    )
    assert read_rows(tmp_path / "runs.csv") == rows


def test_the_tables_of_a_sweep():
    """CSV guards cells; Markdown and LaTeX show letters: no picture, no command."""
    setting = "=x ![a](http://h) \\input{/etc/passwd}"
    line = Line(setting, 1, ("-run\n\\input{x}",), dict.fromkeys([title for title, _, _ in COLUMNS]), {})
    assert f"'{setting}" in cells(as_csv([line])) and "'-run\n\\input{x}" in cells(as_csv([line]))
    page = Sheet([["setting", "HM"], [setting, "1.0 ± 0.2"]], ["missing: -run\n\\input{x}"])
    assert "![" not in as_markdown(page).replace("!\\[", "") and "1.0 ± 0.2" in as_markdown(page)
    latex = as_latex(page)
    assert "\\input" not in latex.replace("% missing: -run \\input{x}", "") and "1.0 $\\pm$ 0.2" in latex
