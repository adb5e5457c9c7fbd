"""Protects configs/tables: every row of every table and figure of the paper composes with the data sets it names."""

import pytest
import yaml

from ace_dist.config import config_dir, load_config

TABLES = sorted((config_dir() / "tables").glob("*.yaml"))


def test_every_table_and_figure_is_there():
    assert [path.stem for path in TABLES] == [*(f"figure{n}" for n in (3, 4, 5)), *(f"table{n}" for n in range(1, 7))]


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_rows_compose_and_differ(path):
    """Each row with the first data set, the last row with all of them; no two rows are the same run."""
    table = yaml.safe_load(path.read_text())
    assert sorted(table["experiments"]) == ["ata_ace", "demo", "gtea_ace", "ikea_ace"]
    rows = list(table["rows"].values())
    runs = [load_config([f"experiment={table['experiments'][0]}", *row]) for row in rows]
    assert all(a != b for i, a in enumerate(runs) for b in runs[:i])
    for experiment in table["experiments"][1:]:
        load_config([f"experiment={experiment}", *rows[-1]])
