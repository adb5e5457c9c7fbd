"""Annotations, labels, trees, label sets, tar files, manifests and answers as nobody meant them.

Each is read or refused by an error of ours, and what was read is counted: rows in = segments + ledger.
"""

import contextlib
import csv
import io
import json
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzzing import cases
from hypothesis import given
from hypothesis import strategies as st

from ace_dist.concepts import Action, SynonymTrees, free_labels, load_class_table, load_srt, srt_labels
from ace_dist.concepts.actions import base_forms, normalise
from ace_dist.config import load_config
from ace_dist.data.annotations.csv import COLUMNS, read_csv
from ace_dist.data.annotations.webdataset import SUFFIXES, WebDatasetReader
from ace_dist.data.shards import ShardSet, action_counts
from ace_dist.tools.synonyms.action_list import read_actions
from ace_dist.tools.synonyms.answers import parse_answer
from ace_dist.tools.synonyms.sheet import read_sheet
from ace_dist.utils.errors import DataError, LabelError

WORDS = st.sampled_from(["put", "screw", "pick", "up", "hole", "Ünlock", "nut", "İn", "x1", "part"])
LABELS = st.lists(WORDS, min_size=1, max_size=3).map(" ".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | LABELS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | LABELS, inner, max_size=4),
    max_leaves=12,
)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """Bytes with one of: a changed byte, a piece cut out, a piece put in, a part repeated."""
    first = draw(st.integers(0, len(content) - 1))
    last = min(len(content), first + draw(st.integers(1, 40)))
    piece = draw(st.sampled_from([b"", b"\0", b'"', b",", b"\n", b"[", b"9" * 400, content[first:last], b"\xff"]))
    return content[:first] + piece + content[last:]


def respelt(draw: Any, label: str) -> str:
    """Another spelling of a label."""
    words = [draw(st.sampled_from([str.upper, str.title, str]))(word) for word in label.split(" ")]
    return draw(st.sampled_from([" ", "_", "-", "  ", " \u200b", "\u00a0"])).join(words)


def changed(draw: Any, value: Any) -> Any:
    """JSON content with one place, drawn on the way down, replaced by other content, or left out."""
    if isinstance(value, dict | list) and value and draw(st.integers(0, 5)):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = draw(st.sampled_from(keys))
        copy = value.copy()
        copy[key] = changed(draw, value[key])
        if draw(st.integers(0, 3)) == 0:
            del copy[key]
        return copy
    return draw(JSON | st.sampled_from([2**70, -1, 1e300, "\0", "../x", "x" * 5000]))


# --------------------------------------------------------------------------------------------------------- labels
@cases(40)
@given(st.text(max_size=30) | LABELS, st.data())
def test_labels(text: str, data: Any) -> None:
    """One form, reached in one step; a label is split and joined again without loss."""
    form = normalise(text)
    assert normalise(form) == form and form == form.strip()
    assert base_forms(text)[0] == form
    with contextlib.suppress(LabelError):
        assert str(Action.parse(text)) == form
    other = respelt(data.draw, text) if text.isascii() and text.replace(" ", "").isalnum() else text
    assert normalise(other) == form
    with contextlib.suppress(LabelError):
        first, second = free_labels([text, "spin block"], None)
        assert first.label == form and second.phrases == ("spin block",)


# ----------------------------------------------------------------------------------------------------- annotations
@st.composite
def tables(draw: Any) -> tuple[str, list[dict[str, str]]]:
    """A CSV file as a spreadsheet may save it, and what its rows say."""
    count, delimiter = draw(st.integers(1, 6)), draw(st.sampled_from(",;\t"))
    point = draw(st.sampled_from(".,")) if delimiter == ";" else "."
    rows = [
        {
            "video": draw(st.sampled_from(["a.mp4", "sub/b c.mp4", ".\\sub\\b c.mp4"])),
            "start_s": f"{10 * number + 0.25}".replace(".", point),
            "end_s": f"{10 * number + 5.5}".replace(".", point),
            "verb": respelt(draw, draw(LABELS)),
            "object": respelt(draw, draw(LABELS)),
            "split": draw(st.sampled_from(["train", "Test", " TRAIN"])),
            "group": draw(st.sampled_from(["", "p1", "p;2", "x,y", 'say "hi"'])),
            "note": draw(st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=10)),
        }
        for number in range(count)
    ]
    header = draw(st.permutations([*COLUMNS, "note"]))
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=draw(st.sampled_from(["\n", "\r\n"])))
    writer.writerow([draw(st.sampled_from([str.upper, str.title, str]))(name) for name in header])
    writer.writerows([row[name] for name in header] for row in rows)
    return text.getvalue(), rows


def write_table(path: Path, content: bytes) -> Path:
    (path / "sub").mkdir()
    (path / "a.mp4").touch()
    (path / "sub" / "b c.mp4").touch()
    (path / "a.csv").write_bytes(content)
    return path / "a.csv"


@cases(40)
@given(tables(), st.sampled_from(["utf-8", "utf-8-sig"]))
def test_tables_of_spreadsheets(table: tuple[str, list[dict[str, str]]], encoding: str) -> None:
    """Every row is a segment that says what the row says."""
    text, rows = table
    with folder() as path:
        segments = read_csv(write_table(path, text.encode(encoding))).segments()
    assert [(s.verb, s.object, s.start_s, s.group) for s in segments] == [
        (
            normalise(row["verb"]),
            normalise(row["object"]),
            float(row["start_s"].replace(",", ".")),
            row["group"].strip(),
        )
        for row in rows
    ]
    assert [s.split for s in segments] == [row["split"].strip().lower() for row in rows]


@cases(40)
@given(st.data())
def test_damaged_tables(data: Any) -> None:
    """Refused with the line, or every line is a segment or in the ledger."""
    rows = [f"a.mp4,{number},{number + 1},put,screw into hole,train,p1" for number in range(5)]
    content = data.draw(damaged("\n".join([",".join(COLUMNS), *rows]).encode()) | st.binary(max_size=60))
    with folder() as path:
        try:
            reader = read_csv(write_table(path, content), keep_faults=True)
        except DataError as error:
            assert "a.csv" in str(error)
            return
    lines = [line for line in content.decode("utf-8-sig").splitlines() if line.strip(" ,;\t")]
    if b'"' not in content:
        assert len(reader.segments()) + len(reader.rejected) == len(lines) - 1


# ----------------------------------------------------------------------------------------- trees, label sets, lists
TREES = {
    "put": {"put": ["put", "place", "set"], "place": ["place", "lay"], "set": ["set", "put down"]},
    "pick up": {"pick up": ["pick up", "lift"], "lift": ["lift", "raise"]},
}


@cases(40)
@given(st.data())
def test_tree_files(data: Any) -> None:
    """A file that is read keeps the rules of trees, and is the same when written and read again."""
    content = changed(data.draw, {"_meta": {"source": "x"}, "_words": {"put": {"park": ["park", "leave"]}}, **TREES})
    raw = json.dumps(content).encode()
    with folder() as path:
        file = path / "trees.json"
        file.write_bytes(data.draw(st.just(raw) | damaged(raw)))
        with contextlib.suppress(LabelError):
            trees = SynonymTrees.load(file)
            for root in trees.roots:
                for node, children in trees.nodes(root):
                    assert node[-1] in children and len(set(children)) == len(children)
                    assert all(normalise(verb) == verb for verb in children)
            trees.save(path / "again.json")
            again = SynonymTrees.load(path / "again.json")
            assert [list(again.nodes(root)) for root in again.roots] == [
                list(trees.nodes(root)) for root in trees.roots
            ]
        with contextlib.suppress(LabelError):
            read_sheet(file)


@cases(40)
@given(st.data())
def test_label_sets_and_class_lists(data: Any) -> None:
    """SRT files and class lists: as many labels as classes, each of them of its own."""
    actions = [Action("put", "screw"), Action("pick up", "nut")]
    runs = changed(data.draw, {"runs": [{"put screw": "Place_screw", "Pick-Up nut": "lift nut"}] * 2})
    table = changed(
        data.draw, {"actions": {"put_it": ["put", "screw"], "take": ["pick up", "nut"]}, "not_actions": ["x"]}
    )
    with folder() as path:
        (path / "srt.json").write_text(json.dumps(runs))
        (path / "classes.json").write_text(json.dumps(table))
        with contextlib.suppress(LabelError):
            sets = srt_labels(actions, load_srt(path / "srt.json"), SynonymTrees(TREES), True, "srt")
            assert all(len(set(labels.labels)) == len(labels.phrases) == 2 for labels in sets)
        with contextlib.suppress(LabelError):
            classes = load_class_table(path / "classes.json")
            assert len(set(map(str, classes.actions.values()))) == len(classes.actions)
        with contextlib.suppress(LabelError):
            read_actions(str(path / "classes.json"))


@cases(40)
@given(st.sampled_from(["csv", "txt", "json"]), st.data())
def test_lists_of_actions(suffix: str, data: Any) -> None:
    """A file of any kind gives its actions, or says in which line it does not."""
    content = (
        "verb,object,split\nput,screw into hole,train\nPick_Up,nut,test\n" if suffix == "csv" else "put screw\n# x\n"
    )
    with folder() as path:
        (path / f"a.{suffix}").write_bytes(data.draw(damaged(content.encode()) | st.binary(max_size=60)))
        with contextlib.suppress(LabelError):
            assert read_actions(str(path / f"a.{suffix}")).by_verb()


# ------------------------------------------------------------------------------------------------------- tar files
NAMES = st.tuples(
    st.sampled_from(["", "./", "d/", "train/"]),
    st.sampled_from(["a", "b", "P01.take1", "P01.take2", "._a", "ä"]),
    st.sampled_from(["mp4", "MP4", "webm", "json", "json", "cls", "txt", "left.mp4", ""]),
)


def tar_bytes(members: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def read_tar(content: bytes) -> WebDatasetReader:
    with folder() as path:
        (path / "train-0.tar").write_bytes(content)
        settings = ["dataset=webdataset", f"dataset.root={path}", "dataset.shards=x", "dataset.allow_quarantine=true"]
        return WebDatasetReader(load_config(settings).dataset)


def accounted(reader: WebDatasetReader) -> int:
    """Videos that are a segment or have a line in the ledger; samples without a video have lines too."""
    videos = [
        entry
        for entry in reader.rejected
        if "has 0 videos" not in entry.reason
        and not ("repeats the name" in entry.reason and not any(f".{end}" in entry.reason.lower() for end in SUFFIXES))
    ]
    return len(reader.segments()) + len(videos)


@cases(40)
@given(st.lists(NAMES, max_size=12))
def test_tar_files_of_any_names(names: list[tuple[str, str, str]]) -> None:
    """Every video is a segment or has a line in the ledger, whatever members are called and how often."""
    label = json.dumps({"verb": "put", "object": "screw", "start_s": 0, "end_s": 1}).encode()
    members = [(f"{place}{stem}.{end}" if end else f"{place}{stem}", label) for place, stem, end in names]
    videos = [name for name, _ in members if name.lower().endswith((".mp4", ".webm")) and "._" not in name]
    assert accounted(read_tar(tar_bytes(members))) == len(videos)


@cases(40)
@given(st.data())
def test_damaged_tar_files(data: Any) -> None:
    """One changed byte is refused, or costs no video its place."""
    label = json.dumps({"verb": "put", "object": "screw", "start_s": 0, "end_s": 1}).encode()
    content = tar_bytes([(f"{k}.{end}", label) for k in range(3) for end in ("mp4", "json")])[: 14 * 512]
    position = data.draw(st.integers(0, len(content) - 1))
    wrong = content[position] ^ data.draw(st.integers(1, 255))
    try:
        reader = read_tar(content[:position] + bytes([wrong]) + content[position + 1 :])
    except DataError as error:
        assert "train-0.tar" in str(error)
        return
    assert accounted(reader) == 3


@cases(40)
@given(st.data())
def test_manifests(data: Any) -> None:
    """A manifest is refused by a sentence, or gives as many clips as it lists."""
    clip = {
        "key": "a", "shard": "train-00000.tar", "offset": 512, "size": 3, "frames": 4, "fps": 8.0, "width": 8,
        "height": 8, "segment_start_s": 0.0, "segment_end_s": 0.5, "verb": "Put", "object": "screw",
        "split": "train", "group": "p", "sha256": "0" * 64,
    }  # fmt: skip
    manifest = {
        "format": "ace-dist shards 1", "clips": [clip, clip | {"key": "b", "split": "test"}], "quarantined": 0,
        "shards": [{"name": "train-00000.tar", "size": 2048, "sha256": "0" * 64, "clips": 2}],
        "configuration": {"encoding": {"codec": "vp9", "gop": 4, "fps": None}, "clip_seconds": 0.5, "segments": 2},
        "counts": {"train": {"put screw": 1}, "test": {"put screw": 1}}, "tools": {"av": "1"},
    }  # fmt: skip
    raw = json.dumps(changed(data.draw, manifest)).encode()
    with folder() as path:
        (path / "train-00000.tar").write_bytes(b"\0" * 2048)
        (path / "manifest.json").write_bytes(data.draw(st.just(raw) | damaged(raw)))
        with contextlib.suppress(DataError, LabelError):
            shards = ShardSet.load(path)
            counts = action_counts(shards.records)
            listed = json.loads((path / "manifest.json").read_bytes())["clips"]
            assert len(shards.split("train")) + len(shards.split("test")) == len(listed)
            assert sum(counts["train"].values()) + sum(counts["test"].values()) == len(listed)
            assert shards.codec and shards.seconds > 0


# --------------------------------------------------------------------------------------------------------- answers
@cases(40)
@given(
    st.lists(
        st.text(max_size=30) | LABELS | st.sampled_from(["place screw", "1. Set screw", "</think>", "```"]), max_size=8
    )
)
def test_answers_of_a_language_model(lines: list[str]) -> None:
    """Verbs in their one form, each once, never the one that was asked for."""
    answer = parse_answer("\n".join(lines), Action("put", "screw"))
    assert len(set(answer.verbs)) == len(answer.verbs) and "put" not in answer.verbs
    assert all(normalise(verb) == verb and len(verb.split()) <= 3 and verb.isascii() for verb in answer.verbs)
