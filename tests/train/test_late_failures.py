"""What the end of a run needs is looked for at its start, in a dry run, and before a job is submitted."""

import json
import shutil
import sys

import pytest
from safetensors.torch import load_file, save_file

from ace_dist.cluster.profiles import split_profile
from ace_dist.cluster.submit import check_job
from ace_dist.config import assets_dir, load_config, read_config
from ace_dist.train.dry_run import dry_run
from ace_dist.train.trainer import train
from ace_dist.utils.errors import UserError

pytestmark = pytest.mark.slow


def broken(folder, what):
    """Settings that training itself could live with and its evaluation could not, and what is said of them."""
    trees = json.loads((assets_dir() / "synonyms" / "tabletop.json").read_text())
    labels = json.loads((assets_dir() / "srt" / "tabletop.json").read_text())
    path = folder / f"{what}.json"
    if what == "trees without a novel verb":
        novel = next(iter(labels["runs"][0])).split()[0]
        path.write_text(json.dumps({root: tree for root, tree in trees.items() if root != novel}))
        return f"evaluation.synonyms={path}", f"no synonym tree for the verb '{novel}'"
    if what == "a run without a class":
        del labels["runs"][3][next(iter(labels["runs"][3]))]
        path.write_text(json.dumps(labels))
        return f"dataset.srt={path}", "run 4 has no label for"
    setting = {"no trees": "evaluation.synonyms", "no labels": "dataset.srt"}[what]
    return f"{setting}={path}", f"{setting}={path}"


@pytest.mark.parametrize("what", ["no trees", "no labels", "trees without a novel verb", "a run without a class"])
def test_what_the_test_lacks_is_said_before_the_first_step(small_world, ranks, tmp_path, what):
    setting, message = broken(tmp_path, what)
    settings = [*small_world(), f"run={tmp_path / 'run'}", "training.device=cpu", setting]
    for start in (train, dry_run):
        with pytest.raises(UserError) as caught:
            start(load_config(settings), ranks)
        assert message in str(caught.value)
    assert not (tmp_path / "run").exists()
    if what.startswith("no "):  # a file's content needs the classes, which only shards tell
        with pytest.raises(UserError, match=setting.split("=")[0]):
            check_job(load_config, "train", settings, split_profile([])[0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["loader.backend=torchcodec"], "torchcodec"),
        (["dataset.clip.seconds=60"], "dataset.clip.seconds"),
        (["+deepspeed.gradient_clipping=1"], "deepspeed.gradient_clipping is derived"),
        (["model.video.trained_blocks=0", "model.text.train_projection=false"], "model.video.trained_blocks, or set"),
        (["training.lr_new=0.1"], "training.lr_new=0.1 is of layers over frames and prompts"),
    ],
)
def test_the_fix_of_a_start_that_was_refused_may_use_its_folder(
    small_world, ranks, tmp_path, monkeypatch, wrong, message
):
    """No step was taken, so the folder belongs to no configuration; clips and words are noted anew, too."""
    monkeypatch.setitem(sys.modules, "torchcodec", None)  # importing it raises
    run, trees = tmp_path / "run", tmp_path / "trees.json"
    settings = [
        f"run={run}", f"dataset.synonyms={trees}", "training.device=cpu", "training.batch_size=4",
        "training.max_steps=1", "training.log_every_steps=1",
    ]  # fmt: skip
    text = (assets_dir() / "synonyms" / "tabletop.json").read_text()
    trees.write_text(text)
    with pytest.raises(UserError, match=message):
        train(load_config([*small_world(), *settings, *wrong]), ranks)
    trees.write_text(text.replace('"raise"', '"hoist up"'))
    more = small_world("dataset.world.train_clips=40")
    assert train(load_config([*more, *settings, "seed=3"]), ranks).step == 1
    assert read_config(run).seed == 3 and json.loads((run / "clips.json").read_text())["clips"] == 40
    assert (run / "inputs" / "synonyms.json").read_text() == trees.read_text()
    with pytest.raises(UserError, match="belongs to another configuration"):
        train(load_config([*more, *settings, "seed=4"]), ranks)


def test_a_dry_run_refuses_what_a_training_refuses(small_world, ranks, tmp_path):
    """Other clips and other frozen weights than the run began with; a feature cache with nothing frozen to keep."""
    run, weights, world = tmp_path / "run", tmp_path / "video.safetensors", small_world()
    shutil.copy(assets_dir() / "weights" / "tabletop" / "video.safetensors", weights)
    settings = [
        f"run={run}", f"model.video.weights={weights}", "training.device=cpu", "training.batch_size=4",
        "training.max_steps=2",
    ]  # fmt: skip
    train(load_config([*world, *settings, "training.stop_after_steps=1"]), ranks)
    cache = ["loader.augment=false", f"loader.feature_cache={tmp_path}/cache", "model.video.trained_blocks=6"]
    other = small_world("dataset.world.train_clips=40")
    changed = {name: tensor + 1 for name, tensor in load_file(weights).items()}
    for words, message in (
        ([*world[:-1], other[-1], *settings], "holds other training clips than run"),
        ([*world, *settings, *cache, f"run={tmp_path}/new"], "has nothing to keep"),
        ([*world, *settings], "was trained on other frozen weights"),
    ):
        if "frozen" in message:
            save_file(changed, weights)
        for start in (dry_run, train):
            with pytest.raises(UserError, match=message):
                start(load_config(words), ranks)


def test_all_missing_files_are_named_at_once():
    settings = ["experiment=demo", "evaluation.synonyms=a.json", "dataset.srt=b.json", "dataset.classes=c.json"]
    with pytest.raises(UserError) as caught:
        check_job(load_config, "train", settings, split_profile([])[0])
    assert all(name in str(caught.value) for name in settings[1:])
