"""Protects what is said of a path that is no file, by every reader that a user's path may reach."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ace_dist.concepts import SynonymTrees, load_class_table
from ace_dist.concepts.labels import load_srt
from ace_dist.data.annotations.csv import find_video, read_csv
from ace_dist.data.build.container import open_bytes
from ace_dist.models.similarity import read_attributes
from ace_dist.models.weights import read_safetensors
from ace_dist.segment.embed import digest_video
from ace_dist.tools.synonyms.action_list import read_rows
from ace_dist.tools.synonyms.sheet import read_sheet
from ace_dist.utils.errors import UserError
from ace_dist.utils.reading import files_below, read_text

READERS = {
    "text": lambda path: read_text(path, UserError),
    "video of a row": lambda path: find_video(path.parent, path.name),
    "video": open_bytes,
    "long video": digest_video,
    "annotations": read_csv,
    "trees": SynonymTrees.load,
    "label sets": load_srt,
    "classes": load_class_table,
    "weights": lambda path: read_safetensors(path, "model.video.weights"),
    "attributes": lambda path: read_attributes(str(path)),
    "actions": read_rows,
    "sheet": read_sheet,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["is a folder", "a pipe", "is a link to", "does not exist"])
def test_what_is_no_file_is_called_what_it_is(tmp_path, reader, kind):
    path = tmp_path / "name"
    match kind:
        case "is a folder":
            path.mkdir()
            (path / "x.csv").touch()  # else a folder of annotations, a folder per label
        case "a pipe":
            os.mkfifo(path)
        case "is a link to":
            path.symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=rf"{path}\b.* {kind}"):
        READERS[reader](path)


def test_files_behind_links_to_folders_are_found(tmp_path):
    """Videos often lie on another disk; a link to a folder above would be walked for ever."""
    (tmp_path / "disk" / "anna").mkdir(parents=True)
    (tmp_path / "disk" / "anna" / "a.mp4").touch()
    (tmp_path / "own" / ".hidden").mkdir(parents=True)
    (tmp_path / "own" / ".hidden" / "b.mp4").touch()
    (tmp_path / "own" / "lift lid").symlink_to("../disk")
    (tmp_path / "own" / "push lever").symlink_to("../disk")  # two names of one folder are two folders
    (tmp_path / "own" / "up").symlink_to("..")
    (tmp_path / "disk" / "back").symlink_to("../own")
    found = [path.relative_to(tmp_path / "own").as_posix() for path in files_below(tmp_path / "own")]
    assert found == ["lift lid/anna/a.mp4", "push lever/anna/a.mp4", "up/disk/anna/a.mp4"]
    (tmp_path / "own" / "z").symlink_to("../unmounted")
    with pytest.raises(UserError, match=r"own/z is a link to \.\./unmounted, which does not exist; mount or"):
        list(files_below(tmp_path / "own"))


def test_a_file_that_may_not_be_read_is_not_to_be_built_again(tmp_path, monkeypatch):
    def refused(self, **_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    (tmp_path / "manifest.json").touch()
    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(UserError, match=r"json cannot be read \(Permission denied\); `ls -ld .*` shows who may$"):
        read_text(tmp_path / "manifest.json", UserError, "; build it again")
