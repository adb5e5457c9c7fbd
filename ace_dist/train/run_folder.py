"""A run's folder: its one configuration, `config.yaml`, `environment.json`, `code.diff`, `starts`."""

import json
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ace_dist import __version__
from ace_dist.config import Config, read_config, sealed, to_values, to_yaml
from ace_dist.data.run_inputs import PATHS, changed_inputs, check_run_place, has_begun
from ace_dist.data.sampling import read_clips
from ace_dist.models.weights import TRAINED
from ace_dist.train.run_lock import RunLock
from ace_dist.train.schedule import average_start, exact, total_steps
from ace_dist.utils.errors import RunError
from ace_dist.utils.files import read_log, write_text
from ace_dist.utils.secrets import redact, redacted

# Settings that may change between a run and its continuation without changing what is computed.
FREE_SETTINGS = (
    "run", "profile", "training.stop_after_steps", "training.log_every_steps", "training.save_every_steps",
    "training.save_every_minutes", "training.keep_checkpoints", "training.collective_timeout_s",
    "training.stall_after_s", "training.gc_every_steps", "training.trackers", "training.meters.mfu",
    "training.profile.steps", "training.profile.after", "training.profile.trace", "training.profile.memory_snapshot",
    "training.accumulation",  # the batch is the same, in other pieces; `what_changed` says where that matters
    "training.device", "model.video.attention", "loader.backend",  # another machine has others, equal but for rounding
    "deepspeed.zero_optimization.stage", "loader.threads", "loader.prefetch", "dataset.workers",
    "evaluation.batch_size", "dataset.root", "dataset.annotations",  # the clips decide, see `claim_clips`
)  # fmt: skip
LENGTH = {"training.epochs", "training.max_steps"}  # which may grow
RESULTS = (  # of its weights: a calibration goes with them, or it would be used with others
    "predictions.json", "concept_space.npz", "report.html", "figures", "calibration.json", "timelines.json",
    "model/trained.safetensors", "model/SHA256SUMS",
)  # fmt: skip
PACKAGES = ("torch", "deepspeed", "transformers", "timm", "triton", "xformers", "nvidia-dali-cuda130", "av", "numpy")

CODE = ("ace_dist", "kernels", "launchers", "configs", "pyproject.toml", "constraints.txt")  # what decides a run


def claim(run_dir: Path, config: Config, lock: RunLock, claim_clips: Callable[[], None] = lambda: None) -> None:
    """Make the folder, or check that it belongs to this configuration. Takes `lock` first.

    Raises `RunError` when another job has it, or when settings differ, naming the first of them and the ways out. A
    folder whose starts all failed before a step was logged or saved is free for any configuration. `claim_clips`
    compares the clips with those of the run, or writes them into a new folder.
    """
    lock.acquire()
    if (run_dir / "checkpoints").is_dir():
        for name in ("config.yaml", "clips.json"):
            if not (run_dir / name).is_file():
                print(f"WARNING: {run_dir / name} is gone: it is written again, as this command has it", flush=True)
    owned = check_owner(run_dir, config)
    if not has_begun(run_dir):
        for name in ("clips.json", "inputs/inputs.json"):  # of a start that failed
            (run_dir / name).unlink(missing_ok=True)
    claim_clips()
    if owned:
        was, is_now = step_counts(run_dir, config)
        if is_now > was:
            rates = f"from here on the learning rates are those of a run of {is_now} steps"
            print(f"the run grows from {was} to {is_now} steps: {rates}", flush=True)


def write_start(run_dir: Path, config: Config) -> None:
    """Write `config.yaml` and `environment.json` of a start that nothing refuses any more.

    Also `code.diff`, when the checkout's code differs from its commit: commit and diff give the code that ran. What an
    earlier start wrote there goes to `starts/N`, unless it says the same. What is written holds no secret
    (`ace_dist.utils.secrets`).
    """
    facts = {
        "config.yaml": sealed(to_yaml(config)),
        "environment.json": json.dumps(environment(), indent=1, ensure_ascii=False) + "\n",
        "code.diff": code_diff(),
    }
    keep_earlier_start(run_dir, facts)
    for name, text in facts.items():
        if text:
            write_text(run_dir / name, text)


def keep_earlier_start(run_dir: Path, facts: dict[str, str]) -> None:
    """Move the files of an earlier start of the run to `starts/0001` and so on, when they say something else."""
    before = {name: (run_dir / name).read_text(encoding="utf-8") for name in facts if (run_dir / name).is_file()}
    if "environment.json" not in before or before == {name: text for name, text in facts.items() if text}:
        return
    folder = run_dir / "starts" / f"{len(list(run_dir.glob('starts/*'))) + 1:04d}"
    folder.mkdir(parents=True)
    for name, text in before.items():
        write_text(folder / name, text)  # config.yaml stays where it is until it is replaced: the run is its
    (run_dir / "code.diff").unlink(missing_ok=True)


def check_owner(run_dir: Path, config: Config) -> bool:
    """Whether a run has begun in the folder; raises as `claim` does when it is of another configuration."""
    check_run_place(run_dir)
    if not (run_dir / "config.yaml").is_file() or not has_begun(run_dir):
        return False
    # Read through the schema: a setting that is newer than the folder had its default there.
    differences = changed_settings(to_values(read_config(run_dir)), to_values(config))
    was, is_now = step_counts(run_dir, config)
    if is_now >= was:
        differences = [change for change in differences if change[0] not in LENGTH]
    said = [f"{key} was {old!r}, is {new!r}" for key, old, new in differences] + changed_inputs(run_dir, config)
    check_average(run_dir, config, was, is_now)
    if said:
        shown = "; ".join(said[:4]) + f"; a run may grow, not shrink from {was} to {is_now} steps" * (is_now < was)
        raise RunError(
            f"run folder {run_dir} belongs to another configuration ({shown}); choose another one with "
            f"run=DIR, or delete the folder"
        )
    return True


def check_average(run_dir: Path, config: Config, was: int, is_now: int) -> None:
    """Raise `RunError` for a run that grows past the steps that its average (`training.swa_start`) would be of."""
    if (share := config.training.swa_start) is None:
        return
    start, taken = average_start(share, is_now), [path.name[5:] for path in run_dir.glob("checkpoints/step-*")]
    done = max((int(step) for step in taken if step.isdigit()), default=0)
    if start < done and start != average_start(share, was):
        raise RunError(
            f"of {is_now} steps training.swa_start={share:g} averages the weights from step {start} on, and run "
            f"{run_dir} has taken {done} steps, of which it has the last weights alone; let it grow to "
            f"{math.ceil(done / exact(share))} steps or more, or train in another folder with run=DIR"
        )


def step_counts(run_dir: Path, config: Config) -> tuple[int, int]:
    """Steps of the run in the folder and of this configuration, both of its clips; 0 when none was taken."""
    path = run_dir / "clips.json"
    clips = read_clips(path)["clips"] if path.is_file() else 0
    return total_steps(read_config(run_dir).training, clips), total_steps(config.training, clips)


def set_results_aside(run_dir: Path, step: int) -> None:
    """Before a finished run takes more steps, move its results and weights to `earlier/step-N`; says where they are.

    `step` is that of its newest whole checkpoint, and the last line of its log that of its weights.
    """
    if not any((run_dir / name).is_file() for name in ("results.json", f"model/{TRAINED}")):
        return
    step = max([step, *(row["step"] for row in read_log(run_dir / "metrics.jsonl")[0])])
    folder = run_dir / "earlier" / f"step-{step:08d}"
    (folder / "model").mkdir(parents=True, exist_ok=True)
    for name in (*RESULTS, "results.json"):  # which tells that the run has finished, and so goes last
        if (run_dir / name).exists():
            shutil.rmtree(folder / name, ignore_errors=True)  # figures of the same steps, which were taken twice
            os.replace(run_dir / name, folder / name)
    print(f"the results of {step} steps are kept in {folder}; the run goes on", flush=True)


def changed_settings(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted key, old and new value of every setting that differs and matters. Of a path it is whether there is one."""
    if prefix in PATHS and None not in (old, new):
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            change
            for key in old | new
            for change in changed_settings(old.get(key), new.get(key), f"{prefix}{'.' if prefix else ''}{key}")
        ]
    return [] if old == new or prefix in FREE_SETTINGS else [(prefix, old, new)]


def environment() -> dict[str, Any]:
    """Versions, git commit, hardware and command line, for `environment.json`; secrets in them are hidden."""
    versions = {"ace-dist": __version__}  # of the source that runs, which need not be installed
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts = {
        "command": command_line(),
        "python": platform.python_version(),
        "versions": versions,
        "git": git_state(),
        "hardware": {"cpu": cpu_name(), "cores": os.cpu_count(), **({"gpus": cuda} if cuda else {})},
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
    }
    return dict(redacted(facts))


def command_line() -> str:
    """The command that starts this run again, from the checkout."""
    settings = [arg for arg in sys.argv[1:] if not arg.startswith("--local_rank")]
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    launched = len(settings) < len(sys.argv) - 1 or ranks > 1  # by DeepSpeed, which added --local_rank, or by SLURM
    launcher = ["deepspeed", "--num_gpus", str(ranks)] if launched else ["python"]
    program = Path(sys.argv[0]).name
    installed = program in ("ace", "__main__.py")  # as a wheel, which has no launchers
    words = ["--module" if launched else "-m", "ace_dist"] if installed else [f"launchers/{program}"]
    return shlex.join([*launcher, *words, *settings])


def cpu_name() -> str:
    """The processor's name as Linux tells it, elsewhere its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def git_state() -> dict[str, Any]:
    """Commit of the checkout, whether it was modified, and code files that git does not know.

    Outside a checkout, as in an installed wheel, all are null.
    """
    commit = git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "modified": None, "untracked": None}
    return {
        "commit": commit.strip(),
        "modified": bool(git("status", "--porcelain")),
        "untracked": (git("ls-files", "--others", "--exclude-standard", "--", *CODE) or "").splitlines(),
    }


def code_diff() -> str:
    """What the checkout's code has that its commit has not, as a patch in which secrets are hidden.

    Empty when there is no difference, or outside a checkout.
    """
    files = re.split(r"^(?=diff --git )", git("diff", "HEAD", "--", *CODE) or "", flags=re.M)
    return "".join(redact(patch, code=patch.partition("\n")[0].endswith(".py")) for patch in files)


def git(*words: str) -> str | None:
    """What git says of the checkout that this package runs from; None when it is none, or there is no git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None
