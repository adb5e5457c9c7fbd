"""Profiles, jobs, submission, sweeps and their table, without a scheduler."""

import csv
import io
import json
import os
import pickle
import random
import re
import signal
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import submitit
import torch

from ace_dist.cli import execute, sweeps
from ace_dist.cluster import jobs
from ace_dist.cluster.jobs import Event, Job, read_journal
from ace_dist.cluster.preflight import Finding, table
from ace_dist.cluster.profiles import ClusterConfig, split_profile
from ace_dist.cluster.submit import (
    LocalQueue,
    build_job,
    check_gpus,
    check_job,
    has_left,
    job_environment,
    refuse_secrets,
    sbatch_text,
)
from ace_dist.cluster.sweep import State, Sweep, SweepRun, expand, launch, run_id, run_state, select
from ace_dist.config import config_dir, load_config
from ace_dist.tools.study.collect import as_csv, as_html, as_latex, as_markdown, collect, sheet, write_tables
from ace_dist.utils.errors import ConfigError


@pytest.fixture(autouse=True)
def signals():
    """Handlers as they were: a job that was requeued is deaf, and ignored signals pass on to every child process."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_every_shipped_profile_loads():
    """No file of configs/cluster is dead; SLURM's make an sbatch file."""
    for path in (config_dir() / "cluster").glob("*.yaml"):
        profile = split_profile([f"cluster={path.stem}"])[0]
        if profile.kind == "slurm":
            assert f"--nodes={profile.nodes}" in sbatch_text(profile, "name", path.parent)


def test_a_profile_reaches_the_sbatch_file(tmp_path):
    """Each resource of a profile of one's own is in the file, once, and its setup comes before the ranks."""
    own = tmp_path / "lab.yaml"
    own.write_text(
        "kind: slurm\nnodes: 4\ntasks_per_node: 8\ngpus_per_node: 8\ncpus_per_task: 12\nmem_gb: 900\ntime_min: 90\n"
        "partition: gpu\naccount: lab\nqos: high\nconstraint: h100\nexclude: 'n[3-4]'\nsbatch: {reservation: night}\n"
        "setup: [module load cuda]\nsignal_lead_s: 77\n"
    )
    text = sbatch_text(
        split_profile([f"cluster={own}", "cluster.partition=long", "cluster.parallel=3"])[0], "x", tmp_path, 9
    )
    for flag in (
        "nodes=4", "ntasks-per-node=8", "gpus-per-node=8", "cpus-per-task=12", "mem=921600M", "time=90", "account=lab",
        "partition=long", "qos=high", "constraint=h100", "exclude='n[3-4]'", "reservation=night", "signal=USR2@77",
        "array=0-8%3", "requeue",
    ):  # fmt: skip
        assert f"#SBATCH --{flag}\n" in text, flag
    assert text.index("module load cuda") < text.index("srun")
    assert "--kill-on-bad-exit=1" in text and text.count("--cpus-per-task=12") == 2 and "partition=gpu" not in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["cluster=slrum"], ["slrum", "did you mean 'slurm'"]),
        (["cluster=nowhere.yaml"], ["nowhere.yaml", "no such file"]),
        (["cluster.partitoin=x"], ["cluster.partitoin", "did you mean 'cluster.partition'"]),
        (["cluster=slurm", "cluster.nodes=two"], ["two", "nodes"]),
        (["cluster.nodes=2"], ["cluster.nodes=2", "kind=slurm"]),
        (["cluster=slurm_gpu", "cluster.tasks_per_node=4"], ["tasks_per_node=4", "gpus_per_node=8"]),
        (["cluster=slurm", "cluster.time_min=1"], ["signal_lead_s=120", "time_min=1"]),
    ],
)
def test_wrong_profiles_are_named(settings, words):
    """Each mistake names the value and the setting."""
    with pytest.raises(ConfigError) as caught:
        split_profile(settings)
    assert all(word in str(caught.value) for word in words), caught.value


def test_wrong_jobs_are_refused_before_they_wait_in_a_queue(tmp_path, monkeypatch):
    """A launcher, setting or batch size that cannot work, and a secret that would be written into files."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
    two = ClusterConfig(kind="slurm", nodes=2)
    with pytest.raises(ConfigError, match="did you mean 'train'"):
        execute(["submit", "launcher=trian"])
    for launcher, settings, word in (
        ("train", ["seeed=1"], "did you mean 'seed'"),
        ("train", ["training.batch_size=15"], "multiple of 2"),
        ("train", ["name=sk-0123456789"], "holds a secret"),
    ):
        with pytest.raises(ValueError, match=word) as caught:
            check_job(load_config, launcher, settings, two)
        assert "sk-0123456789" not in str(caught.value)
    with pytest.raises(ConfigError, match="holds a secret"):
        refuse_secrets(ClusterConfig(kind="slurm", setup=["export MY_TOKEN=abcdefgh"]), [])


def test_a_pickled_job_holds_no_environment(tmp_path, monkeypatch):
    """What submitit writes to disk: the launcher and its settings; and what sbatch passes on has no secrets."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
    monkeypatch.setenv("HOME_OF_DATA", "kept")
    job = build_job(execute, "train", ["seed=3"], tmp_path)
    assert b"sk-0123456789" not in pickle.dumps(job) and pickle.loads(pickle.dumps(job)) == job
    profile = ClusterConfig(kind="slurm", environment=["HOME_OF_*"])
    with job_environment(profile, [job]):
        assert "OPENAI_API_KEY" not in os.environ and os.environ["HOME_OF_DATA"] == "kept"
    assert os.environ["OPENAI_API_KEY"] == "sk-0123456789"


def command_in(folder, how):
    """A command that says where it ran, and ends well, with an error or stopped; pickled by value, as it is nested."""

    def execute(words):
        import os
        from pathlib import Path

        from ace_dist.utils.distributed import rank_variables
        from ace_dist.utils.errors import UserError

        place = rank_variables(os.environ)
        Path(folder, place["RANK"] + "-" + place["WORLD_SIZE"]).write_text(" ".join(words))
        if how == "bad":
            raise UserError("the file is not there")
        return 75 if how == "preempted" else 0

    return execute


@pytest.mark.parametrize(
    ("how", "event", "detail"),
    [("good", "finished", ""), ("bad", "failed", "the file is not there"), ("preempted", "stopped", "saved")],
)
def test_a_local_job_runs_the_launcher_on_every_rank_and_says_how_it_ended(how, event, detail, tmp_path):
    """Through submitit's own executor: ranks, arguments, and the journal for each kind of end; nothing is requeued."""
    job = Job(command_in(str(tmp_path), how), ("train", "seed=1"), str(tmp_path / "journal.jsonl"))
    seen = []
    local = LocalQueue(ClusterConfig(kind="local", tasks_per_node=2, parallel=1), tmp_path / "jobs")
    local.run([job], lambda index, job_id: seen.append(job_id), seen.append)
    assert len(seen) == 2 and seen[1] == 0
    for rank in "01":
        assert (tmp_path / f"{rank}-2").read_text() == "train seed=1"
    events = read_journal(tmp_path / "journal.jsonl")
    assert next(e for e in events if e.event == event).detail.startswith(detail), events
    assert {e.job_id for e in events} == {seen[0]} and sum(e.event == "started" for e in events) == 1


def gpu_command_in(folder):
    """A command that says which GPUs it was given; pickled by value, as it is nested."""

    def execute(words):
        import os
        from pathlib import Path

        Path(folder, words[1]).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
        return 0

    return execute


@pytest.mark.parametrize(
    ("visible", "count", "given"),
    [
        (None, 4, ["0,1", "2,3"]),
        ("6, 2,4,3,9,1", 4, ["6,2", "4,3"]),
        ("GPU-ab,GPU-cd,GPU-ef,GPU-01", 4, ["GPU-ab,GPU-cd", "GPU-ef,GPU-01"]),
    ],
)
def test_local_jobs_share_the_gpus_that_the_user_sees(visible, count, given, tmp_path, monkeypatch):
    """Not numbers from 0, which may be another user's GPUs; what follows a device that is not there (9) is none."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    profile = ClusterConfig(kind="local", tasks_per_node=2, gpus_per_node=2, parallel=2)
    execute = gpu_command_in(str(tmp_path))
    queued = [Job(execute, ("train", name), str(tmp_path / f"{name}.jsonl")) for name in "ab"]
    LocalQueue(profile, tmp_path / "jobs").run(queued, lambda *_: None, lambda _: None)
    assert [(tmp_path / name).read_text() for name in "ab"] == given


def test_more_gpus_than_there_are(tmp_path, monkeypatch):
    """A job without a GPU of its own would train on the CPU; two on one GPU would share its memory."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    three = ClusterConfig(kind="local", tasks_per_node=2, gpus_per_node=2, parallel=3)
    with pytest.raises(ConfigError, match=r"cluster.gpus_per_node=2 for 3 job\(s\) at a time needs 6 GPUs, .* sees 4"):
        launch(Sweep(tmp_path / "s"), [SweepRun(name, {}, []) for name in "abcd"], three, execute, dry_run=True)
    words = ["cluster.gpus_per_node=5", "cluster.tasks_per_node=5", "dry_run=true", "training.batch_size=5"]
    with pytest.raises(ConfigError, match="needs 5 GPUs, but torch sees 4 here"):
        execute(["submit", "experiment=demo", *words])
    check_gpus(three, 2)
    check_gpus(replace(three, kind="slurm"), 4)


def test_a_sweep_on_the_cpu_of_a_machine_with_gpus_says_so(tmp_path, monkeypatch, capsys):
    """`ace train` takes the GPUs, a local sweep takes those of the setting, which it names."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for gpus, said in ((2, "gpus     none of the 2 here; cluster.gpus_per_node=1"), (0, "= 1 rank(s)")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        profile, _ = split_profile([])
        assert launch(Sweep(tmp_path / "s"), [SweepRun("a", {}, [])], profile, execute, dry_run=True) == 0
        printed = capsys.readouterr().out
        assert said in printed and ("gpus" in printed) == bool(gpus)
        launch(Sweep(tmp_path / "s"), [SweepRun("a", {}, [])], replace(profile, kind="slurm"), execute, dry_run=True)
        assert "gpus" not in capsys.readouterr().out


class FakeSlurm:
    """What `Job` asks of submitit's environment."""

    cluster, job_id, num_tasks, hostnames = "slurm", "17", 2, ("n1", "n2")

    def __init__(self, folder, rank):
        self.paths = submitit.core.utils.JobPaths(folder, job_id="17")
        self.global_rank = rank

    def _usr_sig(self):
        return signal.SIGUSR2


@pytest.fixture
def handler():
    """Stands for submitit's handler of USR2; restores what was there."""
    calls = []

    def requeue(number, frame):
        calls.append(number)
        raise SystemExit(255)

    before = signal.signal(signal.SIGUSR2, requeue)
    yield calls
    signal.signal(signal.SIGUSR2, before)


@pytest.mark.parametrize(
    ("rank", "state", "requeued", "status"),
    [(0, "RUNNING", True, 255), (0, "COMPLETING", False, 75), (0, "CANCELLED", False, 75), (1, "RUNNING", False, 0)],
)
def test_only_rank_0_of_a_running_job_requeues(rank, state, requeued, status, tmp_path, monkeypatch, handler):
    """A job that is being cancelled or requeued shows COMPLETING (SLURM 22.05); other ranks end without error."""
    monkeypatch.setattr("ace_dist.cluster.jobs.queue_state", lambda job_id: state)
    stale = tmp_path / "17_submitted.pkl.save_tmp"
    stale.write_text("of a start that was killed while it requeued: submitit would stop at it")
    with pytest.raises(SystemExit) as caught:
        Job(execute, (), str(tmp_path / "journal.jsonl")).requeue(FakeSlurm(tmp_path, rank))
    assert caught.value.code == status and bool(handler) == requeued and stale.exists() != requeued


def test_a_job_that_had_its_timeouts_says_so(tmp_path, monkeypatch):
    """submitit refuses to requeue it: the run is stopped, not killed without a word."""
    monkeypatch.setattr("ace_dist.cluster.jobs.queue_state", lambda job_id: "RUNNING")

    def refuse(number, frame):
        raise submitit.core.utils.UncompletedJobError("Job not requeued because: timed-out too many times.")

    signal.signal(signal.SIGUSR2, refuse)
    with pytest.raises(submitit.core.utils.UncompletedJobError):
        Job(execute, (), str(tmp_path / "jobs/r.jsonl")).requeue(FakeSlurm(tmp_path, 0))
    found = run_state(SweepRun("r", {}, [], ["17"], "slurm"), tmp_path, {})
    assert found.state == "stopped" and "timed-out too many times. (cluster.max_timeouts)" in found.detail


def test_a_controller_that_is_busy_is_asked_again(tmp_path, monkeypatch):
    """It does not answer, then refuses, then knows the job: a busy moment must not cost the requeue."""
    count = tmp_path / "count"
    script = tmp_path / "scontrol"
    script.write_text(
        f"#!/bin/sh\necho . >> {count}\ncase $(wc -l < {count}) in 1) exec sleep 60;; 2) exit 1;; "
        "*) echo JobId=$4 JobState=RUNNING Reason=None;; esac\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(jobs, "ANSWER_S", 0.5)
    assert jobs.queue_state("17") == "RUNNING"
    script.write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.setattr(jobs, "ANSWER_S", 0.01)
    assert jobs.queue_state("17") == "UNKNOWN"


def test_a_checkpoint_is_the_same_job():
    """submitit calls `checkpoint()` in its handler on one rank: it must save nothing and change nothing."""
    job = Job(execute, ("train", "seed=1"), "j")
    assert job.checkpoint().function == job


def test_a_grid():
    """Ranges include both ends, Hydra's choices and ranges work, a list is one value; the order is the user's."""
    points = expand(["training.epochs=1", "method=ace,procvlr", "seed=0..2", "dataset.novel=[a b,c d]"])
    assert [point.id for point in points] == [
        f"method-{method}_seed-{seed}" for method in ("ace", "procvlr") for seed in (0, 1, 2)
    ]
    assert points[-1].overrides == ["training.epochs=1", "dataset.novel=[a b,c d]", "method=procvlr", "seed=2"]
    assert [point.settings["seed"] for point in expand(["seed=7,1..2"])] == ["7", "1", "2"]
    assert [point.settings["seed"] for point in expand(["seed=range(0,3)"])] == ["0", "1", "2"]
    assert expand(["seed=1"]) == [SweepRun("run", {}, ["seed=1"])]
    assert expand(["dataset.shards=/Straße, 2/x"])[0].overrides == ["dataset.shards=/Straße, 2/x"]
    for wrong in ("seed=4..1", "dataset.novel=[a b"):
        with pytest.raises(ConfigError, match=r"4\.\.1|not closed"):
            expand([wrong])
    for other in ("seed=0..2", "seed=7"):  # else a run twice, or not what was written last
        with pytest.raises(ConfigError, match=rf"seed is swept and given more than once \(seed=0\.\.1 {other}\)"):
            expand(["seed=0..1", other])


def test_run_folders_are_apart_and_compose():
    """Odd values get a hash, so no two runs share a folder, and the folder survives Hydra's grammar."""
    odd = [{"dataset.annotations": f"/data/a b{k}.csv", "seed": "1"} for k in "!?"]
    names = [run_id(swept) for swept in odd]
    assert len(set(names)) == 2
    for name in names:
        assert load_config([f"run=runs/sweeps/x/{name}"]).run.endswith(name)


def test_a_sweep_survives_the_disk_and_grows(tmp_path):
    """Same settings again: the same runs; a larger grid adds to them; other fixed settings are refused by name."""
    sweep = Sweep(tmp_path / "s")
    profile = split_profile(["cluster=slurm", "cluster.sbatch={reservation: night}", "cluster.nodes=3"])[0]
    sweep.note_submission(profile, sweep.add(expand(["seed=0..1", "training.epochs=1"])))
    sweep = Sweep.read(tmp_path / "s")
    assert sweep.last_profile() == profile and sweep.submissions[0]["runs"] == ["seed-0", "seed-1"]
    assert {"command", "git", "versions", "utc"} <= set(sweep.submissions[0])
    assert [run.id for run in sweep.add(expand(["seed=1..2", "training.epochs=1"]))] == ["seed-1", "seed-2"]
    assert list(sweep.runs) == ["seed-0", "seed-1", "seed-2"]
    with pytest.raises(ConfigError, match=r"seed-0 .*training.epochs=2"):
        sweep.add(expand(["seed=0..2", "training.epochs=2"]))
    with pytest.raises(ConfigError, match="a sweep gives each of its runs a folder"):
        sweep.add(expand(["run=x", "seed=0..1"]))
    with pytest.raises(ConfigError, match="there are the sweeps s"):
        Sweep.read(tmp_path / "t")


@pytest.mark.parametrize(
    ("first", "then", "words"),
    [
        (["method=ace", "seed=0..1", "training.epochs=1"], ["method=ace", "seed=2..3", "training.epochs=2"],
         r"seed-2 would be averaged with run seed-0, which has other settings \(training.epochs=1, training."),
        (["method=ace,procvlr"], ["method=ace,procvlr", "seed=0..1"],
         "method-ace_seed-0 has the seed and fold of run method-ace, so that it would count twice"),
        (["method=ace,procvlr", "seed=3"], ["method=ace,procvlr", "seed=2..3"],
         "method-ace_seed-3 has the seed and fold of run method-ace, "),
    ],
)  # fmt: skip
def test_what_a_sweep_averages_belongs_together(first, then, words, tmp_path):
    """Its table has a mean a line: the runs of one differ in seed and fold alone, and each counts once."""
    sweep = Sweep(tmp_path / "s")
    sweep.add(expand(first))
    with pytest.raises(ConfigError, match=words):
        sweep.add(expand(then))
    sweep.add(expand(["method=ace,procvlr", "seed=7..8", "training.lr_text=0.1,0.2"]))  # lines of their own


def test_a_sweep_trains_where_it_lies(tmp_path, monkeypatch):
    """Copied, renamed, or asked from another folder: not into the folder where it began, which is what was stored."""
    monkeypatch.chdir(tmp_path)
    sweep = Sweep(Path("old"))
    sweep.note_submission(ClusterConfig(kind="local"), sweep.add(expand(["seed=0..1"])))
    content = json.loads(Path("old/sweep.json").read_text())
    content["runs"][0]["overrides"].append("run=old/seed-0")  # a file of before
    Path("old/sweep.json").write_text(json.dumps(content))
    Path("old").rename("new")
    sweep = Sweep.read(Path("new"))
    sweep.add(expand(["seed=0..1"]))
    (tmp_path / "elsewhere").mkdir()
    submitted = []
    monkeypatch.setattr("ace_dist.cluster.sweep.run_locally", lambda sweep, runs, jobs, profile: submitted.extend(jobs))
    launch(sweep, list(sweep.runs.values()), ClusterConfig(kind="local"), execute, dry_run=False)
    assert [job.words[-1] for job in submitted] == [f"run={tmp_path}/new/seed-{seed}" for seed in (0, 1)]
    assert "run=" not in Path("new/sweep.json").read_text()


def test_two_commands_on_one_sweep_keep_each_others_runs(tmp_path):
    """Each began when the other's runs were not written yet; the last to write must not undo the first."""
    profile = ClusterConfig(kind="local")
    first, second, other = (Sweep(tmp_path / "s") for _ in range(3))
    first.note_submission(profile, first.add(expand(["method=ace", "seed=0..1"])))
    second.note_submission(profile, second.add(expand(["method=ace", "seed=1..2"])))
    first.note_jobs({"seed-0": "1", "seed-1": "2"}, "local")
    second.note_jobs({"seed-1": "3", "seed-2": "4"}, "slurm")
    first.note_jobs({"seed-0": "5"}, "local")
    found = Sweep.read(tmp_path / "s")
    assert {run.id: (run.jobs, run.kind) for run in found.runs.values()} == {
        "seed-0": (["1", "5"], "local"), "seed-1": (["2", "3"], "slurm"), "seed-2": (["4"], "slurm"),
    }  # fmt: skip
    assert [made["runs"] for made in found.submissions] == [["seed-0", "seed-1"], ["seed-1", "seed-2"]]
    with pytest.raises(ConfigError, match=r"seed-0 was made with other settings \(method=ace, method=procvlr\)"):
        other.note_submission(profile, other.add(expand(["method=procvlr", "seed=0..1"])))
    assert Sweep.read(tmp_path / "s").runs == found.runs


def test_a_change_waits_for_another_process(tmp_path):
    """Between its reading and its writing nobody else may write."""
    sweep = Sweep(tmp_path / "s")
    sweep.note_submission(ClusterConfig(kind="local"), sweep.add(expand(["seed=0..9"])))
    code = (
        "import sys; from pathlib import Path; from ace_dist.cluster.sweep import Sweep\n"
        f"sweep = Sweep.read(Path({str(tmp_path / 's')!r}))\n"
        "for k in range(10): sweep.note_jobs({f'seed-{k}': sys.argv[1]}, 'local')"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(number)]) for number in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert all(sorted(run.jobs) == ["0", "1", "2"] for run in Sweep.read(tmp_path / "s").runs.values())


@pytest.mark.parametrize(
    ("words", "kind", "time_min", "setup"),
    [
        ([], "slurm", 90, ["module load ${LAB}"]),
        (["cluster.time_min=600"], "slurm", 600, ["module load ${LAB}"]),
        (["cluster=local", "cluster.time_min=600"], "local", 600, []),
    ],
)
def test_a_retry_goes_where_the_runs_were(words, kind, time_min, setup, tmp_path, monkeypatch):
    """A single value changes the profile of the last submission; it must not bring the runs to this machine."""
    sweep = Sweep(tmp_path / "s")
    profile = ClusterConfig(kind="slurm", time_min=90, setup=["module load ${LAB}"])
    sweep.note_submission(profile, sweep.add(expand(["seed=0..1"])))
    used = []
    monkeypatch.setattr(sweeps, "launch_runs", lambda sweep, runs, verb, profile, *_: used.append(profile) or 0)
    execute(["sweep", "retry", "sweep=s", f"folder={tmp_path}", *words])
    assert (used[0].kind, used[0].time_min, used[0].setup) == (kind, time_min, setup)


def journal(folder, name, *events):
    """A journal with these (event, start, detail)."""
    path = folder / "jobs" / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    lines = [json.dumps(vars(Event(event, "now", "17_0", start, 0, "n1", detail))) for event, start, detail in events]
    path.write_text("\n".join([*lines, '{"event": "cut sho']) + "\n")


@pytest.mark.parametrize(
    ("waiting", "events", "state", "word"),
    [
        ("PENDING", [], "pending", ""),
        ("PENDING", [("started", 0, ""), ("requeued", 0, "")], "pre-empted", "step 4"),
        ("RUNNING", [("started", 0, "")], "running", "step 4"),
        ("COMPLETING", [("started", 0, "")], "running", "step 4"),
        (None, [], "failed", "before it started"),
        (None, [("started", 0, "")], "failed", "Killed by the kernel"),
        (
            None,
            [("started", 0, ""), ("failed", 0, "KeyError: 'a'"), ("failed", 0, "peer lost")],
            "failed",
            "KeyError: 'a'",
        ),
        (None, [("failed", 0, "old"), ("started", 1, ""), ("failed", 1, "new")], "failed", "new"),
        (None, [("started", 0, ""), ("stopped", 0, "saved")], "stopped", "saved"),
        (None, [("started", 0, ""), ("finished", 0, "")], "stopped", "without results after step 4"),
        ("UNSEEN", [("started", 0, "")], "unknown", "job 17_0 cannot be asked about from here"),
    ],
)
def test_the_state_of_a_run(waiting, events, state, word, tmp_path):
    """Queue, journal and log together; the first failure of the last start is the cause, not a peer's echo of it."""
    run = SweepRun("r", {}, [], ["16_0", "17_0"], "slurm")
    if events:
        journal(tmp_path, "r", *events)
    (tmp_path / "jobs").mkdir(exist_ok=True)
    (tmp_path / "jobs" / "17_0_0_log.out").write_text(
        "train:  10%|\rtrain:  20%|\r\ntrain: 7 of 9 steps\nKilled by the kernel\n"
    )
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "metrics.jsonl").write_text('{"step": 3}\n{"step": 4}\n')
    found = run_state(run, tmp_path, {"17_0": waiting} if waiting else {})
    assert found.state == state and word in found.detail and not re.search("20%|7 of 9", found.detail)
    (tmp_path / "r" / "results.json").write_text("{}")
    assert run_state(run, tmp_path, {}).state == "finished"


def test_of_two_jobs_the_one_that_is_there_counts(tmp_path):
    """Two commands submitted the run at the same time; the second job has ended, as the first had the folder."""
    run = SweepRun("r", {}, [], ["17_0", "18_0"], "slurm")
    assert run_state(run, tmp_path, {"17_0": "RUNNING"}).state == "running"
    assert run_state(run, tmp_path, {"17_0": "RUNNING", "18_0": "UNSEEN"}).state == "running"


def test_a_local_job_is_known_by_more_than_its_number(tmp_path, monkeypatch):
    """A number is another process's after a while, after a restart of the machine, and on another machine."""
    sweep = Sweep(tmp_path / "s")
    sweep.note_submission(ClusterConfig(kind="local"), sweep.add(expand(["seed=0..3"])))
    pid = str(os.getpid())
    sweep.note_jobs(dict.fromkeys(sweep.runs, pid), "local")
    for name, other in (
        ("seed-1", {"started": "1"}),
        ("seed-2", {"boot": "b"}),
        ("seed-3", {"boot": "b", "host": "h"}),
    ):
        sweep.runs[name].processes[pid] |= other
    sweep.write()
    states = Sweep.read(tmp_path / "s").states()
    assert [state.state for state in states.values()] == ["running", "failed", "failed", "unknown"]
    assert states["seed-3"].detail.startswith(f"job {pid} of h cannot be asked about from here")
    assert [run.id for run in select(list(sweep.runs.values()), states, "retry")] == ["seed-1", "seed-2"]
    assert [run.id for run in select(list(sweep.runs.values()), states, "retry unknown")][-1] == "seed-3"


@pytest.mark.parametrize("squeue", [None, "#!/bin/sh\nexit 1\n"])
def test_a_sweep_is_collected_where_slurm_is_not(squeue, tmp_path, monkeypatch, capsys):
    """On a laptop, or while the controller does not answer: what is not finished is unknown, and counts as missing."""
    sweep = Sweep(tmp_path / "s")
    sweep.note_submission(ClusterConfig(kind="slurm"), sweep.add(expand(["method=ace", "seed=0..2"])))
    sweep.note_jobs({"seed-0": "17_0", "seed-1": "17_1"}, "slurm")
    (tmp_path / "s/seed-0").mkdir()
    (tmp_path / "s/seed-0/results.json").write_text(json.dumps(results(random.Random())))
    (tmp_path / "bin").mkdir()
    if squeue:
        (tmp_path / "bin/squeue").write_text(squeue)
        (tmp_path / "bin/squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert [state.state for state in sweep.states().values()] == ["finished", "unknown", "new"]
    execute(["sweep", "collect", "sweep=s", f"folder={tmp_path}"])
    printed = capsys.readouterr().out
    assert "1 of 3" in printed and "missing: seed-1: unknown" in printed
    assert not has_left("17_1")


def test_what_is_submitted_again():
    """`retry` takes failed runs alone; the sweep's own command takes whatever is not finished and not in the queue."""
    names = ("finished", "running", "pending", "pre-empted", "stopped", "failed", "unknown", "new")
    runs, states = [SweepRun(name, {}, []) for name in names], {name: State(name) for name in names}
    assert [run.id for run in select(runs, states, "retry")] == ["failed"]
    assert [run.id for run in select(runs, states, "run")] == ["stopped", "failed", "new"]


def results(rng):
    """A results file with random scores."""

    def score():
        return {"accuracy": rng.uniform(0, 100), "f1": rng.uniform(0, 100)}

    srt = {f"{metric}_{kind}": rng.uniform(0, 100) for metric in ("accuracy", "f1") for kind in ("mean", "std")}
    parts = {part: score() for part in ("base", "novel", "hm")}
    return {"method": "m", "dataset": "d", "fold": 0, "seed": 0, **parts, "srt": {"runs": [score()], **srt}}


@pytest.fixture
def swept(tmp_path):
    """Two methods x two seeds x two folds with random scores, one run missing; the scores by run."""
    rng = random.Random()
    sweep = Sweep(tmp_path / "s")
    sweep.add(expand(["method=ace,pro_c", "seed=0..1", "dataset.fold=0..1"]))
    scores = {}
    for name in sweep.runs:
        (sweep.folder / name).mkdir(parents=True)
        if name != "method-pro_c_seed-1_dataset.fold-0":
            scores[name] = results(rng)
            (sweep.folder / name / "results.json").write_text(json.dumps(scores[name]))
    return sweep, scores


def test_the_table_is_mean_and_sample_deviation_over_seeds_and_folds(swept):
    """Against Python's statistics module; a missing run is counted and named in every format, never left out."""
    sweep, scores = swept
    lines = collect(sweep, sweep.states())
    assert [(line.setting, line.count) for line in lines] == [("method=ace", "4"), ("method=pro_c", "3 of 4")]
    rows = list(csv.DictReader(io.StringIO(as_csv(lines))))
    for method in ("ace", "pro_c"):
        for metric, part, key in (
            ("novel f1", "novel", "f1"), ("srt accuracy", "srt", "accuracy_mean"), ("srt f1 spread", "srt", "f1_std"),
        ):  # fmt: skip
            values = [score[part][key] for name, score in scores.items() if f"method-{method}" in name]
            row = next(r for r in rows if (r["setting"], r["metric"]) == (f"method={method}", metric))
            assert float(row["mean"]) == pytest.approx(sum(values) / len(values)) and int(row["runs"]) == len(values)
            assert float(row["std"]) == pytest.approx(statistics.stdev(values))
    text = sheet(lines)
    for written in (as_csv(lines), as_markdown(text), as_latex(text), as_html(text)):
        assert "method-pro_c_seed-1_dataset.fold-0: new" in written
    assert r"method=pro\_c" in as_latex(text) and "method=pro_c" not in as_latex(text).split("toprule")[1]
    assert [path.name for path in write_tables(lines, text, sweep.folder)] == [
        f"table.{s}" for s in ("csv", "md", "tex", "html")
    ]


def test_one_run_has_no_deviation_and_none_has_no_mean(tmp_path):
    """A deviation of 0 out of one run, or a mean of 0 out of none, would be read as a result."""
    sweep = Sweep(tmp_path / "s")
    sweep.add(expand(["method=ace,procvlr"]))
    score = results(random.Random())
    score["novel"] = None
    (sweep.folder / "method-ace").mkdir(parents=True)
    (sweep.folder / "method-ace" / "results.json").write_text(json.dumps(score))
    ace, procvlr = collect(sweep, sweep.states())
    assert str(ace.cells["base accuracy"]) == f"{score['base']['accuracy']:.1f}" and ace.cells["novel accuracy"] is None
    assert procvlr.finished == 0 and set(procvlr.cells.values()) == {None}
    assert sheet([procvlr]).rows[1][2:] == ["-"] * len(procvlr.cells)


def test_preflight_names_the_odd_rank_and_the_remedy():
    """Ranks that disagree fail even when each is content; a failure of rank 0 does not make the others odd."""
    good = [Finding("code", False, "files a", "remedy", "a")] * 3
    text, ready = table([good])
    assert ready and text.startswith("ok") and "all 3 ranks" in text
    text, ready = table([good, [good[0], Finding("code", False, "files b", "remedy", "b"), good[0]]])
    assert not ready and "rank 1: files b" in text and "-> remedy" in text and "rank 2" not in text
    text, ready = table([[Finding("disk", True, "full", "free some"), Finding("disk", False, "fine"), good[0]]])
    assert not ready and "rank 0: full" in text and "rank 1" not in text
