"""Nothing that a user could set in version 0.1 is lost: docs/moved.md is complete."""

import contextlib
import operator
from dataclasses import fields
from pathlib import Path

import pytest

from ace_dist.cli import COMMANDS, LAUNCHERS
from ace_dist.cluster.profiles import ClusterConfig
from ace_dist.config.compose import known_keys
from ace_dist.config.settings import RENAMED
from ace_dist.worlds.tabletop.world import build_world

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "moved.md").read_text(encoding="utf-8")
LINES = Path(__file__).with_name("settings_0_1.txt").read_text().splitlines()
SETTINGS = {owner: [line.split()[1] for line in LINES if line.split()[0] == owner] for owner in {
    line.split()[0] for line in LINES
}}  # fmt: skip
GONE = {"backoff_s", "picture"}


def exists(name, known):
    return name in known or RENAMED.get(name) in known or (name in GONE and f"`{name}`" in PAGE)


def test_settings_of_a_run():
    """Those of a rendered world are checked by the world: see tests/worlds."""
    names = [name for name in SETTINGS["run"] if not name.startswith("dataset.world.")]
    assert len(names) > 150
    assert [name for name in names if not exists(name, known_keys())] == []


def test_settings_of_a_world():
    """A world types and checks its own settings; those of its corpus are a section of theirs."""
    world = build_world({})
    for name in SETTINGS["run"]:
        if name.startswith("dataset.world."):
            assert operator.attrgetter(name.removeprefix("dataset.world."))(world) is not Ellipsis


def test_settings_of_a_cluster():
    known = {f"cluster.{field.name}" for field in fields(ClusterConfig)}
    assert [name for name in SETTINGS["cluster"] if not exists(name, known)] == []


@pytest.mark.parametrize("launcher", sorted(set(SETTINGS) - {"run", "cluster"}))
def test_settings_of_a_launcher(launcher, capsys):
    """Every setting that its help named is in the help of one of its subcommands now."""
    commands = [name for name in COMMANDS if name.split()[0] == launcher or name == LAUNCHERS.get(launcher)]
    for name in commands:
        with contextlib.suppress(SystemExit):
            COMMANDS[name](["--help"])
    shown = capsys.readouterr().out
    named = {line.strip().partition("=")[0] for line in shown.splitlines() if "=" in line}
    assert commands and [name for name in SETTINGS[launcher] if not exists(name, named)] == []


@pytest.mark.parametrize("name", RENAMED)
def test_every_rename_is_on_the_page(name):
    assert f"`{name}" in PAGE or f"`{name.rpartition('.')[2]}`" in PAGE
