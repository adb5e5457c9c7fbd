"""Where the lines of `metrics.jsonl` go besides: TensorBoard, Weights & Biases, Trackio (`training.trackers`).

A tracker gets numbers, the run's name and `config.yaml` as it stands in the run folder, from which secrets are gone;
nothing of the machine, the command line or the code. Those that are not installed with ace-dist are imported only when
chosen. All work offline: WANDB_MODE=offline writes into the run folder, and Trackio is local unless its own variables
name a server.
"""

import importlib.util
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ace_dist.utils.errors import RunError
from ace_dist.utils.files import write_json
from ace_dist.utils.reading import read_object, read_yaml

PROJECT = "ace-dist"  # or WANDB_PROJECT


class Tracker(Protocol):
    """Takes the numbers of one run. A continued run sends the steps since its checkpoint again."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, after `step` steps."""

    def close(self, failed: bool) -> None:
        """Send what is left. `failed`: the run ends with an error."""


class TensorBoard:
    """Event files in `<run_dir>/tensorboard`; what was written after `start` is hidden, as the run writes it again."""

    def __init__(self, run_dir: Path, start: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self.writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:
        self.writer.close()


class WandB:
    """A run of Weights & Biases, the same one after a resume; plotted against `step`, as W&B's own count only rises."""

    def __init__(self, run_dir: Path, start: int) -> None:
        import wandb

        private = wandb.Settings(
            console="off", disable_code=True, disable_git=True, x_disable_meta=True, x_disable_machine_info=True
        )
        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT), name=run_dir.name, id=identity(run_dir),
                resume="allow", config=configuration(run_dir), dir=str(run_dir), settings=private,
            )  # fmt: skip
        except wandb.errors.Error as error:
            raise RunError(
                f"training.trackers lists wandb, which says: {' '.join(str(error).split())}; WANDB_MODE=offline writes "
                f"into {run_dir} without a server"
            ) from error
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({"step": step, **values})

    def close(self, failed: bool) -> None:
        """Wait until all is sent, or written when offline."""
        self.run.finish(exit_code=int(failed))


class Trackio:
    """A run of Trackio, in its local database unless TRACKIO_SERVER_URL or TRACKIO_SPACE_ID says otherwise."""

    def __init__(self, run_dir: Path, start: int) -> None:
        import trackio

        self.trackio = trackio
        name = f"{run_dir.name}-{identity(run_dir)}"
        config = configuration(run_dir)
        trackio.init(PROJECT, name, config=config, resume="allow", embed=False, auto_log_cpu=False, auto_log_gpu=False)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.trackio.log(dict(values), step=step)

    def close(self, failed: bool) -> None:
        """Wait until all is written."""
        self.trackio.finish()


TRACKERS: dict[str, Callable[[Path, int], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}


def require_trackers(names: Sequence[str]) -> None:
    """Raise `RunError` for a name that is none, or that is not installed, before the run begins."""
    for name in names:
        if name not in TRACKERS:
            raise RunError(f"training.trackers lists {name!r}; there are {', '.join(TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise RunError(
                f"training.trackers lists {name}, which is not installed: pip install 'ace-dist[trackers]', or take it "
                f"out of the list"
            )


def build_trackers(names: Sequence[str], run_dir: Path, start: int) -> list[Tracker]:
    """The trackers of a claimed run folder, for a run that begins, or goes on after `start` steps. For one rank."""
    return [TRACKERS[name](run_dir, start) for name in names]


def identity(run_dir: Path) -> str:
    """The name under which servers know this folder's run: drawn once, so that another run in its place is another."""
    path = run_dir / "tracking.json"
    if not path.is_file():
        write_json(path, {"id": secrets.token_hex(4)})
    return str(read_object(path, RunError)["id"])


def configuration(run_dir: Path) -> dict[str, Any]:
    """`config.yaml`, which holds no secret, without the path of the folder."""
    settings = read_yaml(run_dir / "config.yaml", RunError)
    return {key: value for key, value in settings.items() if key != "run"}
