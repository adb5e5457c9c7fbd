"""A start says what a user can mend before it imports torch, and takes no folder of ours that is no run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ace_dist.config import load_config, sealed, to_yaml
from ace_dist.data.run_inputs import NO_RUN, check_files, check_start, results_place, run_config, with_own_inputs
from ace_dist.data.shards import FORMAT, MANIFEST
from ace_dist.train.run_folder import check_owner
from ace_dist.utils.errors import RunError, UserError

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = None  # an import of it fails
from ace_dist.cli import execute, start
from ace_dist.utils.errors import UserError
for run in (execute, start):
    for words in json.loads(sys.argv[1]):
        try:
            print(run(words))
        except UserError as error:
            print(" ".join(str(error).split()))
"""


@pytest.mark.parametrize("name", NO_RUN)
def test_a_training_does_not_write_into_a_folder_of_ours_that_is_no_run(tmp_path, name):
    """An export, shards or a sweep: the advice is another folder, never to delete this one."""
    (tmp_path / name).write_text("{}")
    (tmp_path / "config.yaml").write_text("seed: 0\n")  # which an export has too
    config = load_config(["experiment=demo", f"run={tmp_path}"])
    for check in (lambda: check_start(config), lambda: check_owner(tmp_path, config)):
        with pytest.raises(RunError, match="give the training another folder with run=DIR") as caught:
            check()
        assert "delete" not in str(caught.value) and ("init_from=DIR" in str(caught.value)) == ("prov" in name)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "config.yaml"])


def test_a_run_may_have_its_own_copy_of_a_file_of_words(tmp_path):
    """`check_files` asks for a file that is neither where the setting says nor in the run folder.

    What a start that failed has copied is of no run: the next start may name another file.
    """
    config = load_config(["experiment=demo", f"run={tmp_path}", f"dataset.synonyms={tmp_path}/gone.json"])
    with pytest.raises(UserError, match=r"dataset\.synonyms=.*gone\.json"):
        check_files(config)
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs/synonyms.json").write_text("{}")
    with pytest.raises(UserError, match=r"dataset\.synonyms=.*gone\.json"):
        check_files(config)
    assert with_own_inputs(tmp_path, config).dataset.synonyms.endswith("gone.json")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    check_files(config)
    assert with_own_inputs(tmp_path, config).dataset.synonyms == f"{tmp_path}/inputs/synonyms.json"


def test_a_run_is_where_it_lies(tmp_path):
    """The folder of a copy is its own, whatever its configuration says; results go there, or to a folder of no run."""
    (tmp_path / "config.yaml").write_text(sealed(to_yaml(load_config(["experiment=demo", "run=elsewhere"]))))
    (tmp_path / "environment.json").write_text("{}")
    assert run_config(tmp_path).run == str(tmp_path)
    assert results_place(tmp_path, None) is None and results_place(tmp_path, f"{tmp_path}/figures/..") is None
    assert results_place(tmp_path, f"{tmp_path}/before") == tmp_path / "before"
    with pytest.raises(RunError, match=r"output=\S+ is another run; choose another folder for the results of run"):
        results_place(Path("run"), str(tmp_path))


@pytest.mark.parametrize(
    ("setting", "command"), [("dataset.synonyms", "ace synonyms"), ("model.text.tokenizer", "ace models")]
)
def test_a_missing_file_comes_with_the_command_that_makes_it(tmp_path, setting, command):
    config = load_config(
        ["experiment=demo", "model=tabletop_attnpool", f"run={tmp_path}", f"{setting}={tmp_path}/gone.json"]
    )
    with pytest.raises(UserError, match=rf"{setting}=\S+gone\.json \(`{command}"):
        check_files(config)


def test_what_is_missing_is_said_without_torch(tmp_path):
    """Importing torch and DeepSpeed takes seconds, which nobody should wait for the name of a folder."""
    run, export, none = (tmp_path / name for name in ("run", "export", "none"))
    for folder in (run, export):
        folder.mkdir()
        (folder / "config.yaml").write_text(sealed(to_yaml(load_config(["experiment=demo", "run=r"]))))
    (run / "environment.json").write_text("{}")
    (export / "provenance.json").write_text("{}")
    (export / "video").mkdir()
    shards = tmp_path / "shards"
    shards.mkdir()
    encoding = {"codec": "vp9", "short_side": 64, "gop": 4, "fps": None}
    manifest = {"configuration": {"encoding": encoding, "clip_seconds": 1.0}, "shards": [], "clips": []}
    (shards / MANIFEST).write_text(json.dumps({"format": FORMAT, **manifest}))
    expected = {
        f"train experiment=demo run={tmp_path}/new dataset.shards={none}": "holds no finished build",
        f"train experiment=demo run={tmp_path}/new dataset.shards={none} dry_run=true": "holds no finished build",
        f"train experiment=demo run={export}": "is an export; give the training another folder",
        f"train experiment=demo run={tmp_path}/new dataset.shards={shards} init_from={export}": "is an export; give",
        f"train experiment=demo run={tmp_path}/new dataset.shards={shards} init_from={none}": "is not a run folder",
        f"train experiment=demo run={tmp_path}/new dataset.shards={shards} dataset.synonyms=a.json": "`ace synonyms ",
        f"shards experiment=demo dataset.shards={export}": "is an export; choose another folder for shards",
        f"shards experiment=demo dataset.shards={run}": "is a run folder; choose another folder for shards",
        f"evaluate run={run} dataset.shards={none}": "holds no finished build",
        f"evaluate run={run} output={export}": "is an export; choose another folder for the results",
        f"report run={run} output={shards}": "is a folder of shards; choose another folder for the results",
        f"evaluate run={none}": "is not a run folder",
        f"classify run={none} video=a.mp4 actions=[a,b]": "is not a run folder",
        f"segment run={none} video=[a.mp4] actions=[a,b]": "is not a run folder",
        f"watch run={none} source=a.mp4 actions=[a,b]": "is not a run folder",
        f"shards verify experiment=demo dataset.shards={none}": "holds no finished build",
    } | {
        f"{command} run={export} {words}": "is an export, which `ace classify`"
        for command, words in {
            "evaluate": "", "explore": "", "export": f"output={none}", "calibrate": "", "timelines": "videos=v.csv",
            "report": "",
        }.items()
    }  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "SLURM_STEP_NUM_TASKS")}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, json.dumps([command.split() for command in expected])],
        env={**environment, "PYTHONPATH": f"{ROOT}:{ROOT}/kernels"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 2 * len(expected), done.stdout
    for (command, sentence), line in zip([*expected.items()] * 2, said, strict=True):
        assert sentence in line, (command, line)
