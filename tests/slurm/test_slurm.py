"""On a real SLURM of two nodes: training, pre-emption, a killed rank, a dead node, sweeps, and what must not requeue.

One job is left alone. Another, with the same settings, loses its nodes to an urgent job, then has a rank killed with
-9, then a node dies under it, each at a random step; in the end both have the same losses and weights, bit for bit.
"""

import csv
import json
import os
import random
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ace_dist.cluster.jobs import read_journal

sys.path.insert(0, str(Path(__file__).parent))
from local_slurm import children_of_steps, local_slurm, missing, name_of, wait_for

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60
WORLD = ["dataset.world.train_clips=64", "dataset.world.test_clips=36"]
SETTINGS = [
    "training.batch_size=8", f"training.max_steps={STEPS}", "training.log_every_steps=1",
    "training.save_every_steps=5", "evaluation.batch_size=36",
]  # fmt: skip

pytestmark = [
    pytest.mark.slow,  # the tests of this file build on each other: --dist loadfile
    pytest.mark.skipif(missing() is not None, reason=f"no SLURM: {missing()}"),
]


@pytest.fixture(scope="module")
def slurm():
    """The daemons, for this module."""
    with local_slurm() as running:
        running.environment |= {"OMP_NUM_THREADS": "1", "OPENAI_API_KEY": "sk-not-to-be-found-in-any-file"}
        yield running


@pytest.fixture(scope="module")
def project(tmp_path_factory, launch):
    """A folder with small shards."""
    folder = tmp_path_factory.mktemp("cluster")
    launch("build_shards", *WORLD, f"dataset.shards={folder}/shards")
    return folder


@pytest.fixture(scope="module")
def cluster(slurm, project):
    """Run a cluster launcher as a user would: `cluster("submit", "cluster=slurm", ...)`; returns what it printed."""

    def run(name, *words, check=True):
        script = ROOT / "launchers" / f"{name}.py"
        done = subprocess.run(
            [sys.executable, script, *words], env=slurm.environment, cwd=project, capture_output=True, text=True,
            timeout=500, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, (
            f"{name} {words} ended with {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done.stdout + done.stderr

    return run


def submit_training(cluster, run_dir):
    """Submit the two-node training; returns its job id."""
    printed = cluster(
        "submit", "cluster=slurm", "cluster.nodes=2", "dataset.shards=shards", *SETTINGS, f"run={run_dir}"
    )
    return next(line.split()[1].rstrip(";") for line in printed.splitlines() if line.startswith("job "))


def logged(run_dir):
    """Loss by step; a step that was repeated after a crash counts once, as the report counts it."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return {row["step"]: row["loss"] for row in (json.loads(line) for line in lines if line.endswith("\n"))}


def reach(slurm, job, run_dir, step):
    """Wait until a running job has done a number of steps."""
    wait_for(
        lambda: f"step {step}, now {max(logged(run_dir), default=0)}; {slurm.job(job)}; {log_of(run_dir.parent, job)}",
        lambda: max(logged(run_dir), default=0) >= step or slurm.release_if_held(job),
        timeout_s=240,
        every_s=0.02,
    )


def log_of(project, job, rank=0):
    """What a rank of a job has printed."""
    path = project / "runs" / "jobs" / f"{job}_{rank}_log.out"
    return path.read_text() if path.is_file() else "(no log)"


def finish(slurm, project, job):
    """Wait for a job's end and see that it is a good one."""
    ends = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")
    wait_for(
        lambda: f"the end of {slurm.job(job)}",
        lambda: slurm.job(job).get("JobState") in ends or slurm.release_if_held(job),
        timeout_s=300,
        every_s=0.5,
    )
    assert slurm.job(job)["JobState"] == "COMPLETED", log_of(project, job) + log_of(project, job, 1)


def restarts(slurm, job):
    """How often SLURM has put a job back into the queue."""
    return int(slurm.job(job)["Restarts"])


@pytest.fixture(scope="module")
def alone(slurm, project, cluster):
    """The training that nobody disturbs."""
    job = submit_training(cluster, "alone")
    finish(slurm, project, job)
    return project / "alone"


def test_two_nodes_train_one_model(alone, project):
    """Every task joined through SLURM's variables alone: two ranks on two nodes, one results file, no secret kept."""
    journal = next((project / "runs" / "jobs").glob("*.jsonl"))
    started, finished = read_journal(journal)
    assert (started.event, finished.event) == ("started", "finished") and "2 task(s) on n1,n2" in started.detail
    assert "on 2 rank(s)" in log_of(project, started.job_id)
    assert len(logged(alone)) == STEPS and (alone / "results.json").is_file()
    for path in project.rglob("*"):
        assert not path.is_file() or b"sk-not-to-be-found" not in path.read_bytes(), path


def test_pre_empted_killed_and_without_a_node_it_ends_the_same(alone, slurm, project, cluster):
    """TERM with 30 s of grace, kill -9, and a dead node cost time and nothing else."""
    job = submit_training(cluster, "battered")
    run = project / "battered"

    reach(slurm, job, run, random.randint(3, 15))
    slurm.command("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    wait_for(lambda: f"a requeue; {slurm.job(job)}", lambda: restarts(slurm, job) == 1, timeout_s=30)
    saved = max(logged(run))
    assert (run / "checkpoints" / f"step-{saved:08d}" / "checkpoint.json").is_file(), (
        "it saved at the step it stopped at"
    )
    wait_for(lambda: f"the urgent job's end; {slurm.command('squeue')}", lambda: "wrap" not in slurm.command("squeue"))
    slurm.release(job)
    assert "preempted after step" in log_of(project, job) and "Requeued job" in log_of(project, job)

    reach(slurm, job, run, random.randint(saved + 5, 30))
    rank = next(pid for pid in children_of_steps("n2", slurm.folder) if name_of(pid).startswith("python"))
    before = restarts(slurm, job)
    os.kill(rank, 9)
    wait_for(lambda: f"a requeue; {slurm.job(job)}", lambda: restarts(slurm, job) > before, timeout_s=60)
    slurm.release(job)
    assert re.search(r"a rank was killed \(srun ended with 1(37|43)\); requeued", log_of(project, job))  # KILL or TERM

    reach(slurm, job, run, random.randint(38, 45))
    before = restarts(slurm, job)
    slurm.kill_node("n2")
    wait_for(lambda: f"a requeue; {slurm.job(job)}", lambda: restarts(slurm, job) > before, timeout_s=120)
    slurm.start_node("n2")
    slurm.release(job)

    finish(slurm, project, job)
    journal = sorted((project / "runs" / "jobs").glob("*.jsonl"))[-1]
    starts = [event.start for event in read_journal(journal) if event.event == "started"]
    assert starts == sorted(set(starts)) and len(starts) >= 4
    assert logged(run) == logged(alone)
    ours, theirs = (load_file(folder / "model" / "trained.safetensors") for folder in (run, alone))
    assert ours.keys() == theirs.keys() and all((ours[key] == theirs[key]).all() for key in ours)
    assert (run / "results.json").read_text() == (alone / "results.json").read_text()


def test_a_sweep_with_a_cancelled_run_a_retry_and_a_table(slurm, project, cluster):
    """Four runs, two at a time; one is cancelled, said to have failed, and retried; the table is their mean."""
    folder = project / "runs" / "sweeps" / "study"
    grid = ["sweep=study", "method=ace,procvlr", "seed=0..1", "cluster=slurm", "cluster.parallel=2"]
    grid += ["dataset.shards=shards", *SETTINGS, "training.max_steps=2"]
    printed = cluster("sweep", *grid)
    last = [line.split()[1] for line in printed.splitlines() if line.startswith("job ")][-1]
    slurm.command("scancel", last)
    asked = cluster("sweep", "status", "sweep=study")
    assert "method-procvlr_seed-1  failed" in asked and "ended before it started" in asked
    wait_for(
        lambda: cluster("sweep", "status", "sweep=study"),
        lambda: len(list(folder.glob("*/results.json"))) == 3,
        timeout_s=300,
    )
    assert "missing: method-procvlr_seed-1: failed" in cluster("sweep", "collect", "sweep=study")

    retried = cluster("sweep", "retry", "sweep=study")
    assert "4 runs, of which 1 to submit" in retried
    wait_for(
        lambda: cluster("sweep", "status", "sweep=study"),
        lambda: len(list(folder.glob("*/results.json"))) == 4,
        timeout_s=300,
    )
    again = cluster("sweep", *grid)
    assert "of which 0 to submit" in again, "finished runs are not run again"

    printed = cluster("sweep", "collect", "sweep=study")
    assert "missing" not in printed and all(
        (folder / f"table.{kind}").is_file() for kind in ("csv", "md", "tex", "html")
    )
    rows = list(csv.DictReader((folder / "table.csv").open()))
    for method in ("ace", "procvlr"):
        results = [
            json.loads((folder / f"method-{method}_seed-{seed}" / "results.json").read_text()) for seed in (0, 1)
        ]
        row = next(r for r in rows if r["setting"] == f"method={method}" and r["metric"] == "novel accuracy")
        values = [result["novel"]["accuracy"] for result in results]
        assert float(row["mean"]) == pytest.approx(sum(values) / 2) and row["runs"] == "2"
        assert float(row["std"]) == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
        assert float(row["std"]) == pytest.approx(statistics.stdev(values))


def test_a_job_that_was_cancelled_stays_cancelled(slurm, project, cluster):
    """`scancel` sends the same TERM as pre-emption does, and SLURM would requeue a cancelled job if asked to."""
    folder = project / "patient"
    folder.mkdir()
    script = (
        "import signal, time\n"
        "from pathlib import Path\n"
        "from ace_dist.cluster.jobs import Job\n"
        "from ace_dist.cluster.profiles import split_profile\n"
        "from ace_dist.cluster.submit import submit\n"
        "def wait(words):\n"
        "    got = []\n"
        "    signal.signal(signal.SIGTERM, lambda *_: got.append(1))\n"
        "    print('waiting', flush=True)\n"
        "    while not got: time.sleep(0.05)\n"
        "    return 75\n"
        f"job = Job(wait, ('train',), {str(folder / 'journal.jsonl')!r})\n"
        f"profile, _ = split_profile(['cluster=slurm', 'cluster.nodes=2'])\n"
        f"print(submit(profile, [job], 'patient', Path({str(folder)!r}))[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=slurm.environment, capture_output=True, text=True, check=True
    )
    job = done.stdout.strip()
    log = folder / f"{job}_0_log.out"
    wait_for("the job", lambda: log.is_file() and "waiting" in log.read_text(), timeout_s=60)
    slurm.command("scancel", job)
    slurm.wait_for_state(job, "CANCELLED", "PENDING", timeout_s=60)
    assert slurm.job(job)["JobState"] == "CANCELLED" and restarts(slurm, job) == 0
    assert read_journal(folder / "journal.jsonl")[-1].event == "stopped"


def test_preflight_on_both_nodes(slurm, project, cluster):
    """Versions, code, network, disk, shards and decoder of both nodes, in one table."""
    words = ["launcher=preflight", "cluster=slurm", "cluster.nodes=2", "wait=true"]
    printed = cluster("submit", *words, "dataset.shards=shards", "folder=runs/private", "umask=077")
    assert printed.count("ok  ") == 7 and "FAILED" not in printed and "all 2 ranks" in printed and "\nready" in printed
    files = list((project / "runs" / "private").rglob("*"))
    assert files and not [path for path in files if path.stat().st_mode & 0o077], "a job follows its submitter's umask"
