"""Every file is written under a temporary name and renamed: a kill or a full disk leaves no half of one."""

import ast
import os
from pathlib import Path

import pytest

from ace_dist.utils.files import write_text

ROOT = Path(__file__).resolve().parents[1]
WRITERS = {"write_text", "write_bytes", "savefig", "savez", "savez_compressed", "save_file", "imwrite", "open"}
# What may write where it stands: function -> why.
ALLOWED = {
    ("utils/files.py", "write_pieces"): "under the temporary name",
    ("train/monitor.py", "__init__"): "metrics.jsonl grows a line at a time",
    ("train/monitor.py", "forget_after"): "metrics.damaged.jsonl only grows",
    ("train/health.py", "dump"): "the stacks of a rank that hangs only grow",
    ("cluster/jobs.py", "note"): "a journal grows a line at a time",
    ("data/build/encode.py", "write_file"): "into memory",
    ("utils/locks.py", "lock"): "a lock without content",
    ("data/build/shards.py", "among_tasks"): "a lock without content",
    ("data/shards.py", "write_shard"): "into memory",
    ("evaluate/figures.py", "save"): "into memory",
    ("utils/hub.py", "download"): "under the name .partial, where a stopped download goes on",
    ("tools/explorer/pictures.py", "playable"): "into memory",
    ("cli/timelines.py", "open_log"): "events grow a line at a time",
    ("segment/captions.py", "write_captioned"): "under a temporary name",
    ("worlds/tabletop/procedures.py", "encode_frames"): "under a temporary name",
    ("evaluate/runs.py", "write_concept_space"): "into memory",
}


def writes(call):
    """Whether a call writes a file by itself: a method of a path, a library's save, or `open` in a writing mode."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name not in WRITERS:
        return False
    if name in ("write_text", "write_bytes"):
        return isinstance(call.func, ast.Attribute)  # the functions of utils/files.py are called by their names
    if name != "open":
        return True
    words = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
    return any(isinstance(word, ast.Constant) and str(word.value)[:1] in set("wax") for word in words)


def direct_writes():
    for path in sorted((ROOT / "ace_dist").rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef):
                for call in ast.walk(function):
                    if isinstance(call, ast.Call) and writes(call):
                        yield (str(path.relative_to(ROOT / "ace_dist")), function.name), call.lineno


def test_nothing_is_written_in_place():
    found = dict(direct_writes())
    for place, line in found.items():
        assert place in ALLOWED, f"{place[0]}:{line} writes in place: use ace_dist/utils/files.py"
    assert not ALLOWED.keys() - found.keys(), "these write nothing any more"


def test_an_artefact_whose_writing_is_interrupted_is_the_old_one(tmp_path, monkeypatch):
    """At the moment before the rename, which is the last thing that happens to it."""
    path = tmp_path / "report.html"
    write_text(path, "old")

    def interrupted(*names):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
