"""Files of a finished run that are damaged, cut or gone: named in one line, repaired where that can be, never used."""

import contextlib
import json
import random
import re
import shutil

import pytest

from ace_dist import Classifier
from ace_dist.config import load_config, read_config
from ace_dist.evaluate.export import export_run
from ace_dist.evaluate.run_files import read_metrics
from ace_dist.evaluate.runs import evaluate_run
from ace_dist.models.weights import TensorFile
from ace_dist.train.checkpoint import store_frozen
from ace_dist.train.trainer import train
from ace_dist.utils.errors import ConfigError, RunError, UserError

pytestmark = pytest.mark.slow


def settings(small_world, folder, *more):
    return [
        *small_world(), f"run={folder}", "training.batch_size=4", "training.max_steps=4", "training.log_every_steps=1",
        "training.save_every_steps=2", "training.device=cpu", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_world, ranks):
    """A run of four steps, evaluated."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    train(load_config(settings(small_world, folder)), ranks)
    evaluate_run(folder, ranks)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it that a test may damage."""
    return shutil.copytree(finished, tmp_path / "runs" / "run")


@pytest.fixture
def again(run, small_world, ranks):
    """Give the command of the run again, with more settings."""
    return lambda *more: train(load_config(settings(small_world, run, *more)), ranks)


def flip_bits(path, count):
    """Flip `count` bits at random places, behind the header where it is a file of weights."""
    data = bytearray(path.read_bytes())
    first = 8 + int.from_bytes(data[:8], "little") if path.suffix == ".safetensors" else 0
    for place in random.sample(range(first, len(data)), count):
        data[place] ^= 1 << random.randrange(8)
    path.write_bytes(data)


@pytest.mark.parametrize("count", [1, 400])
@pytest.mark.parametrize("name", ["trained.safetensors", "frozen.safetensors"])
def test_damaged_weights_are_refused_and_the_results_stay(run, ranks, name, count):
    """By the evaluation, the classifier and the export, with the command that makes them anew."""
    before = (run / "results.json").read_bytes()
    flip_bits(run / "model" / name, count)
    for use in (lambda: evaluate_run(run, ranks), lambda: Classifier.from_run(run),
                lambda: export_run(run, run.with_name("exported"))):  # fmt: skip
        with pytest.raises(RunError, match=f"{name} is damaged: its SHA-256 .* the command that trained the run"):
            use()
    assert (run / "results.json").read_bytes() == before and not run.with_name("exported").exists()


def test_the_command_of_the_run_writes_damaged_weights_again(run, ranks, again):
    """What the refusal advises works, and gives the numbers of before."""
    before = (run / "results.json").read_bytes()
    for name in ("trained.safetensors", "frozen.safetensors"):
        flip_bits(run / "model" / name, 400)
    assert again().stopped is None
    evaluate_run(run, ranks)
    assert (run / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe nothing  frozen.safetensors", b"0" * 64 + b"  trained.safeten", None]
)
def test_damaged_checksums_are_no_reason_to_trust(run, content):
    """Empty, no text, cut within a line, cut behind the first line."""
    path = run / "model" / "SHA256SUMS"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0] if content is None else content)
    with pytest.raises(RunError, match="SHA256SUMS"):
        Classifier.from_run(run)


def test_a_run_of_the_version_before_has_no_checksums(run, capsys):
    """It is used, with a line."""
    (run / "model" / "SHA256SUMS").unlink()
    Classifier.from_run(run)
    assert "has no SHA256SUMS: its weights are used unchecked" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["video/model.safetensors", "text/model.safetensors", "config.yaml", "synonyms.json"])
def test_a_damaged_export_is_refused(run, name):
    """One bit of any file that it is read from; the model card is for others to add to."""
    folder = run.with_name("exported")
    export_run(run, folder)
    (folder / "README.md").write_text("another card")
    Classifier.from_pretrained(folder)
    flip_bits(folder / name, 1)
    with pytest.raises(RunError, match=f"{name} is damaged: .* export its run again"):
        Classifier.from_pretrained(folder)


def test_a_finished_run_without_checkpoints_is_not_trained_anew_by_itself(run, again):
    """Its checkpoints were deleted to free space; the same command must not replace its weights."""
    before = (run / "model" / "trained.safetensors").read_bytes()
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(RunError, match=r"has finished, but .*checkpoints holds no checkpoint"):
        again()
    assert (run / "model" / "trained.safetensors").read_bytes() == before


def test_a_refused_start_of_more_steps_changes_no_configuration(run, again):
    """The run would be one of six steps, and its own command refused."""
    before = (run / "config.yaml").read_bytes()
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(RunError, match=r"has finished, but .*checkpoints holds no checkpoint"):
        again("training.max_steps=6")
    assert (run / "config.yaml").read_bytes() == before


def test_a_run_that_begins_again_says_so_and_keeps_its_log(run, again, capsys):
    """All checkpoints of an unfinished run were deleted."""
    before = (run / "metrics.jsonl").read_text()
    shutil.rmtree(run / "checkpoints")
    (run / "model" / "trained.safetensors").unlink()
    assert again().stopped is None
    assert "it begins again at step 0; its log so far is kept as metrics.before-1.jsonl" in capsys.readouterr().out
    assert (run / "metrics.before-1.jsonl").read_text() == before
    losses = [[json.loads(line)["loss"] for line in text.splitlines()] for text in
              (before, (run / "metrics.jsonl").read_text())]  # fmt: skip
    assert losses[0] == losses[1]


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("text", ["no json", '{"loss": 1}', "[]", "\xff", '{"step": "2", "loss": 1}'])
def test_a_damaged_line_of_the_log_is_set_aside_and_said(run, again, ranks, capsys, text):
    """The run goes on; the line is in `metrics.damaged.jsonl`; the report does without it."""
    path = run / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], text.encode("latin-1") + b"\n", *lines[2:]]))
    assert [row["step"] for row in read_metrics(run)] == [1, 3, 4]
    assert "left out, as damaged: line 2" in capsys.readouterr().out
    assert again().stopped is None
    assert f"{path}: line 2 cannot be read: moved to metrics.damaged.jsonl" in capsys.readouterr().out
    assert (run / "metrics.damaged.jsonl").read_bytes() == text.encode("latin-1") + b"\n"
    assert path.read_bytes() == b"".join([lines[0], *lines[2:]])


def test_a_log_that_was_cut_before_the_checkpoint_is_said(run, again, capsys):
    """Steps 2 to 4 are gone, and the half line with them; the checkpoint is of step 4."""
    path = run / "metrics.jsonl"
    first = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(first + first[:20])
    assert again().stopped is None
    said = capsys.readouterr().out
    assert "was cut: it ends with step 1, the checkpoint was written after step 4" in said
    assert path.read_bytes() == first and (run / "metrics.damaged.jsonl").read_bytes() == first[:20] + b"\n"


def test_a_cut_or_flipped_configuration_is_no_other_one(run):
    """Half of `config.yaml` is YAML, and a flipped bit another temperature: refused, with the ways out."""
    path = run / "config.yaml"
    whole, config = path.read_bytes(), read_config(run)
    cuts = [whole[:size] for size in random.sample(range(len(whole)), 30)]
    for text in [*cuts, b"", *(whole[: match.end()] for match in re.finditer(b"\n", whole[:900]))][:-1]:
        path.write_bytes(text)
        with pytest.raises(ConfigError, match=r"config\.yaml"):
            read_config(run)
    for place in random.sample(range(len(whole)), 30):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << random.randrange(7)]) + whole[place + 1 :])
        with contextlib.suppress(ConfigError):  # what is read all the same is an edited file without its first line
            assert read_config(run) == config or not path.read_bytes().startswith(b"#")
    path.write_bytes(whole.replace(b"seed: 0", b"seed: 1", 1))
    with pytest.raises(ConfigError, match="cut, damaged or edited since .* an edited one: drop line 1"):
        read_config(run)
    path.write_bytes(path.read_bytes().partition(b"\n")[2])
    assert read_config(run).seed == 1


@pytest.mark.parametrize("name", ["config.yaml", "clips.json"])
def test_a_damaged_description_is_written_again_when_its_owner_deletes_it(run, again, capsys, name):
    """The refusal advises it; that it was gone is said."""
    before = (run / name).read_bytes()
    cut_in_half(run / name)
    with pytest.raises(UserError, match=rf"{name} is .*delete it"):
        again()
    (run / name).unlink()
    assert again().stopped is None and (name == "config.yaml" or (run / name).read_bytes() == before)
    assert read_config(run).training.max_steps == 4
    assert f"WARNING: {run / name} is gone: it is written again" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["environment.json", "code.diff", "summary.json", "results.json"])
def test_what_only_describes_a_run_never_stops_it(run, again, name):
    """A cut one is kept in `starts` or written again."""
    (run / name).write_bytes(b'{"versions": {"ace')
    assert again().stopped is None


def test_a_damaged_copy_of_a_tree_is_refused(run, ranks):
    """One letter of a synonym would give other results."""
    path = run / "inputs" / "synonyms.json"
    path.write_text(path.read_text().replace("rotate", "rotare", 1))
    with pytest.raises(RunError, match=r"inputs/synonyms\.json is damaged: .* of which it was a copy"):
        evaluate_run(run, ranks)


def test_other_weights_at_the_place_of_the_old_ones_replace_nothing(run):
    """A weight file was downloaded anew: the run is refused before its own frozen weights are touched."""
    path = run / "model" / "frozen.safetensors"
    before = path.read_bytes()
    other = {name: tensor + 1 for name, tensor in TensorFile(path).items()}
    with pytest.raises(RunError, match="was trained on other frozen weights"):
        store_frozen(run, other)
    assert path.read_bytes() == before
    Classifier.from_run(run)
