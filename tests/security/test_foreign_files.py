"""A foreign manifest, tree, run or export is refused in one sentence whatever its values: no traceback, no memory."""

import json
import os
import resource

import pytest

from ace_dist.concepts import SynonymTrees
from ace_dist.concepts.classes import load_class_table
from ace_dist.concepts.labels import load_srt
from ace_dist.config import ModelConfig, load_config, read_config, to_yaml
from ace_dist.data.shards import FORMAT, ShardSet
from ace_dist.evaluate.export import own_file, weight_facts
from ace_dist.evaluate.run_files import read_results, read_run_object
from ace_dist.models.build import check_size
from ace_dist.utils.errors import ConfigError, DataError, ModelError, RunError, UserError
from ace_dist.utils.reading import LARGEST_FILE, parse_json, read_json, read_text, read_yaml

CLIP = {
    "key": "a", "shard": "0.tar", "offset": 512, "size": 100, "frames": 8, "fps": 8.0, "width": 64, "height": 64,
    "segment_start_s": 0.0, "segment_end_s": 1.0, "verb": "spin", "object": "block", "split": "train", "group": "g",
    "sha256": "0" * 64,
}  # fmt: skip


@pytest.fixture
def shards(tmp_path):
    """A folder of one shard of 2,048 bytes: returns a function that writes its manifest with changes."""
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "0.tar").write_bytes(bytes(2048))

    def write(clip=(), **other):
        configuration = {"encoding": {"codec": "vp9", "gop": 32, "fps": None}, "clip_seconds": 1.0}
        manifest = {"format": FORMAT, "configuration": configuration, "shards": [{"name": "0.tar", "size": 2048}]}
        manifest |= {"clips": [{**CLIP, **dict(clip)}]} | other
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    ShardSet.load(write())
    return write


@pytest.mark.parametrize("clip", [
    {"shard": 5}, {"shard": None}, {"offset": 2**70}, {"offset": -1}, {"offset": "512"}, {"size": 2**40}, {"size": 1.5},
    {"size": True}, {"offset": 1949}, {"width": 96000}, {"width": 0}, {"height": "64"}, {"fps": float("nan")},
    {"fps": float("inf")}, {"frames": 10**30}, {"key": ["a"]}, {"verb": "sp\0in"}, {"shard": "../0.tar"},
    {"shard": "other.tar"}, {"segment_end_s": "1"}, {"sha256": None},
])  # fmt: skip
def test_values_of_a_manifest(shards, clip):
    folder = shards(clip)
    with pytest.raises(DataError, match=r"manifest\.json") as refusal:
        ShardSet.load(folder)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500


@pytest.mark.parametrize("other", [
    {"clips": 5}, {"clips": {"a": 1}}, {"clips": [5]}, {"clips": [{}]}, {"shards": [{"name": "0.tar"}]}, {"format": []},
    {"shards": [{"name": "0.tar", "size": 2**80}]}, {"configuration": []}, {"configuration": {"encoding": 5}},
])  # fmt: skip
def test_form_of_a_manifest(shards, other):
    folder = shards(**other)
    with pytest.raises(DataError, match=r"manifest\.json"):
        ShardSet.load(folder)


def test_a_shard_that_is_a_link_out_of_the_folder(shards, tmp_path):
    """Its bytes would be shown as a clip; within the folder a link is a matter of taste."""
    folder = shards()
    (folder / "0.tar").rename(tmp_path / "private")
    (folder / "0.tar").symlink_to(tmp_path / "private")
    with pytest.raises(DataError, match=r"0\.tar is a symbolic link out of"):
        ShardSet.load(folder)
    (folder / "0.tar").unlink()
    (tmp_path / "private").rename(folder / "real.tar")
    (folder / "0.tar").symlink_to("real.tar")
    ShardSet.load(folder)


DEEP = "[" * 100_000 + "]" * 100_000
BAD_JSON = {
    "deep": DEEP, "rather deep": "[" * 50 + "]" * 50, "digits": f"[{'1' * 5000}]", "more than 64 bits": f"[{'1' * 20}]",
    "cut": '{"a": ', "NUL": '["\\u0000"]', "raw NUL": '["\0"]', "twice": '{"a": 1, "a": 2}', "nothing": "",
    "text": "spin",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_JSON)
@pytest.mark.parametrize("read", [
    ShardSet.load, SynonymTrees.load, load_class_table, load_srt, lambda path: read_json(path, RunError),
])  # fmt: skip
def test_json_of_any_kind(tmp_path, name, read):
    path = tmp_path / "manifest.json"
    path.write_text(BAD_JSON[name])
    with pytest.raises(UserError, match=r"manifest\.json") as refusal:
        read(tmp_path if read == ShardSet.load else path)
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize(("text", "said"), [
    ("a: &x [1]\nb: *x\n", "line 2: it repeats a part by an anchor"), ("a: [b\n", "not valid YAML"),
    ("a: " + "[" * 50 + "]" * 50, "deeper than 32"), (f"a: {'1' * 5000}", "5000 digits"), ("- a\n", "one YAML mapping"),
    ("a: 1\na: 2\n", "not valid YAML"), ("a: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
    ("a: \0", "NUL"), ("a: ${oc.env:HOME}", "command line alone"), ("a: \x07", "not valid YAML"),
])  # fmt: skip
def test_yaml_of_any_kind(tmp_path, text, said):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as refusal:
        read_yaml(path, ConfigError)
    assert "config.yaml" in str(refusal.value)


def test_a_few_lines_do_not_unfold_to_gigabytes(tmp_path):
    """Ten levels of ten anchors are 10^10 values."""
    levels = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 11)]
    (tmp_path / "config.yaml").write_text("\n".join(levels))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError, match="anchor"):
        read_config(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_no_text_is_waited_for_or_read_without_end(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "latin").write_bytes("bl\xf6ck".encode("latin-1"))
    with (tmp_path / "large").open("wb") as file:
        file.truncate(LARGEST_FILE + 1)  # takes no space
    for name, said in (("pipe", "no plain file"), ("zero", "no plain file"), ("latin", "not UTF-8"), ("gone", "exist"),
                       ("large", "more than"), (".", "is a folder")):  # fmt: skip
        with pytest.raises(DataError, match=said):
            read_text(tmp_path / name, DataError)


@pytest.mark.parametrize("key", ["video.width", "video.depth", "text.width", "text.embed_dim", "video.image_size"])
@pytest.mark.parametrize("value", [96000, 10**12, 0, -1])
def test_sizes_of_a_model_have_limits(tmp_path, key, value):
    part, name = key.split(".")
    config = load_config(["experiment=demo"])
    setattr(getattr(config.model, part), name, value)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    with pytest.raises(ConfigError, match=rf"model\.{key}={value} must lie in"):
        read_config(tmp_path)


def test_a_model_larger_than_its_files_is_not_built(tmp_path):
    """width: 60000 would take 110 GB before a single weight was compared."""
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file in files:
        file.write_bytes(bytes(1000))
    settings = ModelConfig()
    settings.video.width = settings.text.width = 60000
    with pytest.raises(
        ModelError, match=r"holds 2,000 bytes of weights and its config.yaml describes [\d,]{12,} weights"
    ):
        check_size(settings, files)


@pytest.mark.parametrize("change", [
    {"base": 5}, {"base": {"accuracy": "<b>", "f1": 1.0}}, {"srt": {"runs": []}}, {"seed": "x"}, {"dataset": None},
    {"gzsl": []}, {"hm": {"accuracy": 1.0}}, {"chance": 5}, {"chance": {"novel": {"accuracy": "<b>", "f1": 1.0}}},
])  # fmt: skip
def test_values_of_results(tmp_path, change):
    score = {"accuracy": 1.0, "f1": 1.0}
    results = {"method": "ace", "dataset": "x", "fold": 0, "seed": 0, "base": score, "novel": score, "hm": score}
    (tmp_path / "results.json").write_text(json.dumps(results | {"srt": None}))
    read_results(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(results | {"srt": None} | change))
    with pytest.raises(RunError, match=rf"results\.json: {next(iter(change))}"):
        read_results(tmp_path)
    (tmp_path / "environment.json").write_text("[]")
    with pytest.raises(RunError, match="must hold one JSON object"):
        read_run_object(tmp_path, "environment.json")


def test_an_export_takes_no_file_from_elsewhere(tmp_path):
    """A foreign run that names a private file of this machine, or keeps a link to it, does not publish it."""
    run, private = tmp_path / "run", tmp_path / "private.txt"
    (run / "inputs").mkdir(parents=True)
    private.write_text("hunter2")
    config, key = load_config(["experiment=demo", "method=bike"]), "model.similarity.attributes"
    assert own_file(run, config, key).name == "tabletop.txt"  # ships with ace-dist
    (run / "inputs" / "attributes.txt").symlink_to(private)
    for path in (private, run / "inputs" / "attributes.txt", run / ".." / "private.txt"):
        config.model.similarity.attributes = str(path)
        with pytest.raises(RunError, match="an export takes no file from elsewhere") as refusal:
            own_file(run, config, key)
        assert "hunter2" not in str(refusal.value)
    (run / "inputs" / "attributes.txt").unlink()
    (run / "inputs" / "attributes.txt").write_text("round")
    config.model.similarity.attributes = str(run / "inputs" / "attributes.txt")
    assert own_file(run, config, key).read_text() == "round"


def test_an_export_says_nothing_of_other_weights(tmp_path):
    """Of a file that the run did not start from neither digest nor metadata are published."""
    private = tmp_path / "private.safetensors"
    private.write_bytes(b"secret")
    for began in (None, "0" * 64):
        assert weight_facts(str(private), began).keys() == {"file", "note"}


def test_json_says_where_it_stands():
    with pytest.raises(DataError, match=r"its json is not valid JSON"):
        parse_json(b"\xff{", "its json", DataError)
