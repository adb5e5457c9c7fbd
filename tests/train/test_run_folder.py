"""A run folder belongs to one configuration; its environment says how to repeat the run."""

import dataclasses
import json
import subprocess
from contextlib import nullcontext

import pytest

from ace_dist.config import load_config, read_config
from ace_dist.data.run_inputs import run_config
from ace_dist.evaluate.run_files import run_file
from ace_dist.train import run_folder
from ace_dist.train.run_folder import check_average, command_line, set_results_aside, write_start
from ace_dist.train.run_folder import claim as claim_locked
from ace_dist.train.run_lock import RunLock
from ace_dist.utils.errors import RunError


def claim(run_dir, config):
    """Claim a folder, write what a start writes, log a step, and give the folder back."""
    lock = RunLock(run_dir)
    try:
        claim_locked(run_dir, config, lock)
        write_start(run_dir, config)
        (run_dir / "metrics.jsonl").write_text('{"step": 1}\n')
    finally:
        lock.close()


def test_a_folder_refuses_another_configuration_and_names_what_differs(tmp_path):
    """The same configuration may come back, also with other log intervals; anything that changes results may not."""
    config = load_config([f"run={tmp_path}/run"])
    claim(tmp_path / "run", config)
    assert read_config(tmp_path / "run") == config
    claim(tmp_path / "run", load_config([f"run={tmp_path}/run", "training.log_every_steps=3"]))
    elsewhere = ["training.device=cpu", "model.video.attention=sdpa", "loader.backend=pyav"]
    claim(tmp_path / "run", load_config([f"run={tmp_path}/run", *elsewhere]))
    with pytest.raises(RunError, match=r"seed was 0, is 1; dataset\.clip\.frames was 8, is 4"):
        claim(tmp_path / "run", load_config([f"run={tmp_path}/run", "seed=1", "dataset.clip.frames=4"]))
    assert read_config(tmp_path / "run").seed == 0


@pytest.mark.parametrize(("steps", "is_refused"), [(14, True), (20, False), (12, False)])
def test_a_run_does_not_grow_past_the_steps_of_its_average(tmp_path, steps, is_refused):
    """SWA over the second half of 10 steps has no weights after step 8, from which it would average 14; of 12 the run
    that has done 6 has all."""
    (tmp_path / "checkpoints" / f"step-{6 if steps == 12 else 10:08d}").mkdir(parents=True)
    config = load_config(["training.swa_start=0.5"])
    with pytest.raises(RunError, match="from step 7 on.* 20 steps or more") if is_refused else nullcontext():
        check_average(tmp_path, config, 10, steps)


@pytest.mark.parametrize("tested", [True, False])
def test_all_that_is_of_the_weights_goes_aside_with_them(tmp_path, tested):
    """Whether they were tested or not, and twice; by the last step of the log, where the last checkpoint is damaged."""
    names = ["model/trained.safetensors", "calibration.json", "timelines.json", "figures/loss.svg"]
    for time in ("first", "second"):
        for name in [*names, *["results.json"] * tested]:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(time)
        (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n{"step": 6}\n')
        set_results_aside(tmp_path, 4)
        assert not any((tmp_path / name).exists() for name in names)
        assert {(tmp_path / "earlier" / "step-00000006" / name).read_text() for name in names} == {time}


def test_environment_holds_versions_and_hardware(tmp_path):
    """What a report needs to say where a number comes from."""
    claim(tmp_path, dataclasses.replace(load_config([]), run=str(tmp_path)))
    facts = json.loads((tmp_path / "environment.json").read_text())
    assert facts["versions"]["torch"] and facts["hardware"]["cores"] and "commit" in facts["git"]


def test_a_run_keeps_the_code_that_no_commit_has(tmp_path, monkeypatch):
    """Commit, diff and untracked files of a changed checkout, without secrets; a clean one leaves no diff behind."""
    checkout = tmp_path / "checkout"
    module = checkout / "ace_dist" / "training" / "run_folder.py"
    module.parent.mkdir(parents=True)
    module.write_text("steps = 1\n")
    (checkout / "notes.txt").write_text("not code\n")

    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(checkout), *identity, *words], check=True, capture_output=True)

    git("init")
    git("add", "ace_dist")
    git("commit", "-m", "first")
    module.write_text("steps = 2\napi_key = 'sk-abcdefghijklmnopqrstuvwxyz'\n")
    (checkout / "ace_dist" / "new.py").write_text("")
    monkeypatch.setattr(run_folder, "__file__", str(module))
    config = dataclasses.replace(load_config([]), run=str(tmp_path / "run"))
    claim(tmp_path / "run", config)
    facts = json.loads((tmp_path / "run" / "environment.json").read_text())["git"]
    assert facts["modified"] is True and facts["untracked"] == ["ace_dist/new.py"] and len(facts["commit"]) == 40
    patch = (tmp_path / "run" / "code.diff").read_text()
    assert "-steps = 1\n+steps = 2\n" in patch and "sk-abc" not in patch
    git("checkout", "ace_dist")
    subprocess.run(["git", "-C", str(checkout), "apply", "-"], input=patch, text=True, check=True)
    assert module.read_text().startswith("steps = 2\n")

    git("checkout", "ace_dist")
    claim(tmp_path / "run", config)
    assert not (tmp_path / "run" / "code.diff").exists()
    assert (tmp_path / "run" / "starts" / "0001" / "code.diff").read_text() == patch  # of the start before
    earlier = json.loads((tmp_path / "run" / "starts" / "0001" / "environment.json").read_text())["git"]
    assert earlier["modified"] is True


def test_starts_that_say_the_same_are_kept_once(tmp_path):
    """A requeued run adds nothing; one that goes on with another rate of logging keeps what it was started with."""
    run = tmp_path / "run"
    for every in (3, 3, 5, 5, 7):
        claim(run, load_config([f"run={run}", f"training.log_every_steps={every}"]))
    kept = [read_config(run / "starts" / name).training.log_every_steps for name in ("0001", "0002")]
    assert kept == [3, 5] and read_config(run).training.log_every_steps == 7
    assert len(list((run / "starts").iterdir())) == 2


def test_command_line_can_be_pasted(monkeypatch):
    """DeepSpeed's flag goes, its launcher comes back; settings with spaces are quoted."""
    monkeypatch.setattr("sys.argv", ["/x/launchers/train.py", "--local_rank=0", "dataset.novel=[a b]"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command_line() == "deepspeed --num_gpus 2 launchers/train.py 'dataset.novel=[a b]'"
    monkeypatch.setattr("sys.argv", ["launchers/evaluate.py", "run=runs/x"])  # two ranks that SLURM started
    assert command_line() == "deepspeed --num_gpus 2 launchers/evaluate.py run=runs/x"
    monkeypatch.delenv("WORLD_SIZE")
    assert command_line() == "python launchers/evaluate.py run=runs/x"


def test_an_export_is_told_from_a_run(tmp_path):
    """It lacks what `evaluate`, `calibrate` and `report` read, which nobody can copy into it."""
    (tmp_path / "provenance.json").write_text("{}")
    for read in (run_config, lambda folder: run_file(folder, "environment.json")):
        with pytest.raises(RunError, match="is an export, .*; this command needs the run folder"):
            read(tmp_path)
