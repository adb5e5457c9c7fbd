"""Composition of settings, and the messages for settings that cannot be right."""

import dataclasses
import shutil

import pytest
from omegaconf import MISSING

from ace_dist.cluster import preflight
from ace_dist.cluster.profiles import split_profile
from ace_dist.config import (
    compose,
    config_dir,
    known_keys,
    load_config,
    parse_settings,
    read_config,
    split_settings,
    to_yaml,
)
from ace_dist.config.settings import RENAMED
from ace_dist.utils.errors import ConfigError, DataError
from ace_dist.worlds.tabletop.pretraining import PretrainConfig

EXPERIMENTS = sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_survives_the_disk(experiment, tmp_path):
    """Each file of configs/experiment fits the schema, and `config.yaml` reads back to the same configuration."""
    config = load_config([f"experiment={experiment}", "seed=7", "profile=true"])
    assert config.seed == 7 and config.run.endswith(config.name)
    assert config.training.profile.steps == 0  # stays what the user wrote
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert read_config(tmp_path) == config


@pytest.mark.parametrize("group", ["dataset", "method", "model", "loader", "deepspeed"])
def test_every_choice_of_every_group_composes(group):
    """No YAML file of a group is dead."""
    for path in (config_dir() / group).glob("*.yaml"):
        extra = ["loader=paper"] if path.stem == "timesformer_b16" else []
        if path.stem == "paper":
            extra = ["model=timesformer_b16"]
        load_config([f"{group}={path.stem}", *extra])


@pytest.mark.parametrize(
    ("name", "frames", "seconds", "m", "epochs", "novel"),
    [("ata", 30, 3.0, 11, 15, 5), ("ikea", 25, 2.0, 2, 12, 10), ("gtea", 15, 1.0, 9, 12, 4)],
)
def test_the_papers_recipe(name, frames, seconds, m, epochs, novel):
    """Spec section 3, as printed in the paper."""
    config = load_config([f"experiment={name}_ace"])
    assert (config.dataset.clip.frames, config.dataset.clip.seconds, config.dataset.clip.views) == (frames, seconds, 3)
    assert (config.method.children, config.method.grandchildren, config.method.temperature) == (m, m, 0.02)
    assert (config.training.epochs, config.training.batch_size) == (epochs, 16)
    assert len(config.dataset.novel) == novel
    assert (config.model.video.trained_blocks, config.model.text.trained_layers) == (3, 0)
    assert config.model.text.train_projection and not config.model.video.train_head


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["training.epoch=3"], "unknown setting 'training.epoch'.*did you mean 'training.epochs'"),
        (["+anything=3"], "unknown setting 'anything'"),
        (["method=acee"], "method=acee does not exist.*there are ace.*did you mean 'ace'"),
        (["experiment=dmo"], "experiment=dmo does not exist.*did you mean 'demo'"),
        (["training.epochs=many"], "training.epochs=many is not a number"),
        (["training.batch_size=four"], "training.batch_size=four is not a whole number"),
        (["training.nesterov=maybe"], "training.nesterov=maybe is not true or false"),
        (["loader.mean=0.5"], "loader.mean=0.5 is not a list; write"),
        (["dataset.novel=[spin wheel"], "'dataset.novel=.spin wheel' is not closed"),
        (
            ["dataset.test_groups=p0,p1"],
            r"dataset.test_groups=p0,p1 is not a list; write 'dataset.test_groups=\[p0,p1\]'",
        ),
        (["seed=1,2"], "'seed=1,2' gives several values.*ace sweep"),
        (["training.lr=1"], "unknown setting 'training.lr'.*did you mean 'training.lr_"),
        (["training.epochs=0"], "training.epochs=0.* greater than zero"),
        (["loader.backend=dal"], "loader.backend=dal is not one of auto, dali, pyav"),
        (["model.text.embed_dim=32"], "model.video.embed_dim=64 differs from model.text.embed_dim=32"),
        (["loader.crop=32"], "loader.crop=32 differs from model.video.image_size=48"),
        (["method.fixed_labels=false", "method.random_labels=false"], "leave no loss"),
        (["training.batch_size=10", "training.accumulation=4"], "not a multiple"),
        (["method=bike", "training.batch_size=16", "training.accumulation=16"], "leaves one clip .* loss would be 0"),
        (["loader.short_side_min=60"], "exceeds"),
        (["loader.feature_cache=x"], "loader.feature_cache=x needs loader.augment=false"),
        (["loader.feature_cache_gib=0"], "loader.feature_cache_gib=0.* greater than zero"),
        (["loader.threads=-1"], "loader.threads=-1 must be at least 0"),
        (["evaluation.children=0"], "evaluation.children=0 must be at least 1; null is all"),
        (
            ["model.video.prompt_tokens=4"],
            "prompt_tokens=4 is for model.video.tower=vit, and timesformer would ignore it",
        ),
        (["model.video.temporal_layers=2"], "temporal_layers=2 is for model.video.tower=vit or open_clip"),
        (["model.video.attention=flash"], "model.video.attention=flash is not one of auto, triton, xformers, sdpa"),
        (["model.video.compile=fast"], "model.video.compile=fast is not one of auto, none, cudagraphs"),
        (["model.video.compile=default", "profile=true"], "profile=true does not go with model.video.compile=default"),
        (["model.video.compile=default", "deepspeed=zero3"], "does not go with deepspeed=zero3"),
        (["train"], "'train' is not a setting"),
        (["training.lr_text=-1"], "training.lr_text=-1.* must be at least 0"),
        (["training.lr_new=-1"], "training.lr_new=-1.* must be at least 0"),
        (["training.max_steps=-1"], "training.max_steps=-1 must be at least 0"),
        (["training.stop_after_steps=0"], "training.stop_after_steps=0 must be at least 1; null trains to the end"),
        (["training.milestones=[10,13]"], r"training.milestones=\[10.0, 13.0\] must be shares of the run in \(0, 1\)"),
        (["loader.flip=50"], r"loader.flip=50.0 must lie in \[0, 1\]; it is a probability"),
        (["model.similarity.attribute_share=3"], r"model.similarity.attribute_share=3.0 must lie in \[0, 1\]"),
        (["model.similarity.top=0"], "model.similarity.top=0.* greater than zero"),
        (["evaluation.interpolate=1.2"], r"evaluation.interpolate=1.2 must lie in \[0, 1\]"),
        (["training.keep_best=base"], "training.keep_best=base is not one of false, true, base_srt"),
        (["training.keep_best=base_srt"], "needs words that training never draws; set evaluation.validation_words"),
        (["evaluation.validation_words=0.4"], "holds words out that nothing asks for; set evaluation.every_steps"),
        (["training.layer_decay=0"], r"training.layer_decay=0.0 must lie in \(0, 1\]"),
        (["training.swa_start=0.5", "training.ema_decay=0.9"], "there is one average"),
        (["training.warmup=1.5"], "training.warmup=1.5 must lie in"),
        (["seed=-3"], "seed=-3 must be at least 0"),
        (["training.device=gpu"], "did you mean 'cuda'"),
        (["--help-me"], "'--help-me' is not an option"),
    ],
)
def test_wrong_settings_are_explained(settings, words):
    """Each message names the key, the value, and what would do."""
    with pytest.raises(ConfigError, match=words):
        load_config(settings)


def test_deepspeed_passes_anything_and_local_rank_is_ignored():
    """DeepSpeed's own settings are not typed by us, and its launcher's flag is no setting."""
    config = load_config(["--local_rank=1", "deepspeed=zero2", "deepspeed.zero_optimization.stage=1"])
    assert config.deepspeed["zero_optimization"]["stage"] == 1


def test_sentences_around_a_phrase_are_a_choice_that_wins_over_the_method():
    """ProcedureVRL's 28, counted by its own lists: 4 kinds of picture by 7 ways to name what is done."""
    many = load_config(["experiment=gtea_ace", "method=procvlr", "prompts=procedurevrl"]).model.text.prompts
    assert len(set(many)) == 28 and all(prompt.count("{}") == 1 and prompt.endswith("{}.") for prompt in many)
    assert load_config(["experiment=gtea_ace"]).model.text.prompts == ["{}"]
    assert load_config(["experiment=gtea_ace", "method=text4vis", "prompts=bare"]).model.text.prompts == ["{}"]
    with pytest.raises(ConfigError, match=r"there are bare, procedurevrl; did you mean 'bare'"):
        load_config(["prompts=bar"])


def test_known_keys_cover_nested_settings():
    """The list behind "did you mean" reaches every level."""
    assert {"seed", "dataset.clip.frames", "model.text.tower"} <= set(known_keys())


@dataclasses.dataclass
class ClipSettings:
    run: str = MISSING  # a run folder
    actions: list[str] = MISSING  # a list
    start_s: float | None = None  # start
    device: str | None = "cpu"


def test_settings_of_a_command():
    """Text keeps its characters; lists follow Hydra's grammar; numbers are numbers; mistakes are named."""
    given = parse_settings(["--local_rank=1", "run=a (b)/ü=1", "actions=[spin block, lay down x]"], ClipSettings)
    assert given == ClipSettings("a (b)/ü=1", ["spin block", "lay down x"], None)
    more = parse_settings(["run=007", "actions=lift lid", "start_s=1", "device=null"], ClipSettings)
    assert more == ClipSettings("007", ["lift lid"], 1.0, None)
    for wrong, words in (
        (["run=a"], "actions is not set: give a list as actions=..."),
        (["run=a", "action=[a, b]"], "did you mean 'actions'"),
        (["run=a", "actions=[a, b"], "not closed"),
        (["run=a", "actions=[a, b]", "start_s=x"], "start_s=x is not a number"),
        (["run"], "not a setting"),
    ):
        with pytest.raises(ConfigError, match=words):
            parse_settings(wrong, ClipSettings)


LISTS = {
    "[spin block, lift lid]": ["spin block", "lift lid"],
    "spin block": ["spin block"],
    "'spin, block'": ["spin, block"],
    "[öffnen Tür, spin block, 'a: b']": ["öffnen Tür", "spin block", "a: b"],
    "[source ~/.keys, export A=b]": ["source ~/.keys", "export A=b"],
    "[/Videos (1)/a, b]": ["/Videos (1)/a", "b"],
    "null": None,
}


@pytest.mark.parametrize(("text", "items"), LISTS.items())
def test_a_list_reads_the_same_everywhere(text, items):
    """In a run's settings, a command's own, and those of a cluster's profile."""
    assert load_config([f"dataset.novel={text}"]).dataset.novel == items
    if items is not None:
        assert parse_settings([f"compare={text}"], OwnSettings).compare == items
        assert split_profile(["cluster=slurm", f"cluster.setup={text}"])[0].setup == items


def test_a_command_takes_its_own_settings_and_leaves_the_others():
    own, rest = split_settings(["seed=3", "run=x", "--cfg", "cluster.nodes=2"], OwnSettings)
    assert (own.run, rest) == ("x", ["seed=3", "--cfg", "cluster.nodes=2"])
    profile, rest = split_profile(["cluster=slurm", *rest])
    assert (profile.kind, profile.nodes, rest) == ("slurm", 2, ["seed=3", "--cfg"])


@pytest.mark.parametrize("value", ["/Straße 3/x", "/Videos (1)/it's & #2", "a, Jörg/b", "C:\\x", "plain/with space"])
def test_any_path_needs_no_second_quotes(value):
    """Umlauts, brackets and apostrophes are no part of Hydra's grammar, but of people's folders."""
    assert load_config([f"dataset.shards={value}"]).dataset.shards == value
    quoted = value.replace("'", "\\'")
    assert load_config([f"dataset.shards='{quoted}'"]).dataset.shards == value  # as the grammar asks for


@pytest.mark.parametrize("place", ["$ROOM/x", "~/x"])
def test_a_place_is_found_in_any_setting(place, tmp_path, monkeypatch):
    """As `dataset.shards` is: a shell leaves `~` behind `=` as it is, and a job reads `$NAME` on its node."""
    for name in ("ROOM", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    settings = [
        f"run={place}",
        f"loader.feature_cache={place}",
        f"dataset.shards={place}",
        "loader.augment=false",
    ]
    config = load_config(settings)
    assert config.run == f"{tmp_path}/x" and config.loader.feature_cache == place  # kept as given, found where used
    own = parse_settings([f"run={place}", f"compare=[{place}, y]"], OwnSettings)
    assert own == OwnSettings(f"{tmp_path}/x", [f"{tmp_path}/x", "y"])
    with pytest.raises(DataError, match=f"{tmp_path}/x"):
        preflight.shards(config, None)


@dataclasses.dataclass
class OwnSettings:
    run: str = ""
    compare: list[str] = dataclasses.field(default_factory=list)


@pytest.mark.parametrize(
    ("parse", "words"),
    [
        (lambda argv: load_config(argv), ["experiment=", "own", "procvlr"]),
        (lambda argv: parse_settings(argv, OwnSettings), ["run=", "compare=[]"]),
        (lambda argv: parse_settings(argv, ClipSettings), ["run=...   a run folder", "device=cpu"]),
        (lambda argv: split_profile(split_settings(argv, OwnSettings)[1]), ["compare=[]", "cluster.nodes=1"]),
    ],
)
def test_help_lists_the_settings_and_stops(parse, words, capsys):
    """`--help` of every kind of launcher, anywhere on its line."""
    with pytest.raises(SystemExit) as stopped:
        parse(["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in words)


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_setting_is_refused_with_its_new_name(old, new):
    """In every parser: of a run, of a launcher with settings of its own, and of what is submitted to a cluster."""
    pretraining = {f"pretrain.{entry.name}" for entry in dataclasses.fields(PretrainConfig)}
    assert new in {*known_keys(), *pretraining, "output"} and old not in {*known_keys(), *pretraining}
    for parse in (load_config, lambda argv: parse_settings(argv, OwnSettings)):
        with pytest.raises(ConfigError, match=f"^{old} is now {new}: write {new}="):
            parse([f"{old}=x"])


def test_a_run_of_an_earlier_version_is_refused_in_a_sentence(tmp_path):
    """Its `config.yaml` does not say the objective, which Python chose by the method's name."""
    text = to_yaml(load_config([])).replace("  objective: concept\n", "")
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml has no method\.objective: .* earlier version of ace-dist"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset: {novel: spin block}", "dataset.novel in configs/experiment/mine.yaml is not a list; write"),
        ("training: {epochs: many}", "training.epochs in configs/experiment/mine.yaml is not a number"),
        ("training: {epoch: 3}", "unknown setting 'training.epoch' in .*mine.yaml; did you mean 'training.epochs'"),
        ("trainin: {epochs: 3}", "unknown setting 'trainin' in configs/experiment/mine.yaml; did you mean 'training'"),
        ("dataset: [1", "a file of configs/ is not YAML: .*mine.yaml"),
    ],
)
def test_mistakes_in_an_experiment_of_ones_own_are_explained(tmp_path, monkeypatch, text, message):
    """Hydra's message has the setting and the fault in its later lines."""
    shutil.copytree(compose.config_dir(), tmp_path / "configs")
    head = "# @package _global_\ndefaults:\n  - override /dataset: csv\nname: mine\n"
    (tmp_path / "configs" / "experiment" / "mine.yaml").write_text(head + text + "\n")
    monkeypatch.setattr(compose, "config_dir", lambda: tmp_path / "configs")
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(["experiment=mine"])
    assert "\n" not in str(caught.value)
