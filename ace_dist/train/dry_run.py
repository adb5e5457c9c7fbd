"""The rehearsal of a run (`dry_run=true`): one batch goes forward and back, and nothing is written."""

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from ace_dist.concepts import ConceptDraw
from ace_dist.config import Config
from ace_dist.data.loader import build_loader
from ace_dist.data.loader.base import Batch, Loader
from ace_dist.data.run_inputs import with_own_inputs
from ace_dist.data.sampling import ClipRequest, claim_clips
from ace_dist.data.task import Task
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.objectives import total_loss
from ace_dist.train.checkpoint import weights_digest
from ace_dist.train.engine import Engine, micro_batch_size
from ace_dist.train.metrics import peak_gib
from ace_dist.train.run_folder import check_owner
from ace_dist.train.schedule import total_steps
from ace_dist.train.trainer import Outcome, build_task, describe
from ace_dist.utils.distributed import Ranks, on_first
from ace_dist.utils.errors import UserError
from ace_dist.utils.text import in_words


def dry_run(config: Config, ranks: Ranks) -> Outcome:
    """Print what `train` would do: classes, clips, parameters, the first batch, losses, memory, time. Collective.

    Raises what `train` would raise before its second step, and `UserError` for a batch that is not what was asked for.
    """
    run_dir = Path(config.run)
    continues = check_owner(run_dir, config)
    config = with_own_inputs(run_dir, config)
    task, plan, objective = build_task(config, ranks)
    steps = total_steps(config.training, len(plan.records))
    if continues:
        on_first(ranks, check_begun, run_dir, config, task, objective.model)
    about = describe(task, plan, config, objective, ranks, steps)
    engine = Engine(config, objective, ranks, steps)
    requests = plan.requests(0)[: micro_batch_size(config, ranks.world)]
    objective.model.frozen_part(config.loader)  # refuses a feature cache that has nothing to keep
    objective.model.train()
    parts = config.training.accumulation
    objective.model.set_step(config.seed, 0, ranks.rank * parts, ranks.world * parts)
    draw = objective.sampler.draw(0)
    with closing(build_loader(config, ranks.device)) as loader:
        batch = next(loader.stream(iter([requests])))
        check_batch(batch, requests, config)
        with torch.no_grad():  # what the first pass alone must make or load is no part of a step's time
            engine.forward(batch, draw)
        loss, losses, micro_s = timed_pass(engine, loader, requests, draw)
    step_s = parts * max(ranks.gather(micro_s))
    peaks_gib = ranks.gather(peak_gib(ranks.device))
    values = ", ".join(f"{name} {part.item():.3f}" for name, part in {"total": loss, **losses}.items())
    classes = [
        f"{kind}, {len(task.test_clips(kind == 'novel')[0])} test clips: {', '.join(map(str, actions)) or 'none'}"
        for kind, actions in (("base", task.classes.base), ("novel", task.classes.novel))
    ]
    device = "GPU" if ranks.device.type == "cuda" else "host"
    where = f"{run_dir} holds this run, which would continue" if continues else f"{run_dir} would be made"
    if ranks.is_first:
        print(
            about,
            *classes,
            f"first batch of a rank: video {list(batch.video.shape)} [B, T, 3, H, W], losses: {values}",
            f"memory of a rank at its peak: {max(peaks_gib):.2f} GiB of the {device}",
            f"time: about {step_s:.2g} s a step here (decode, forward, backward), {in_words(steps * step_s)} for "
            f"{steps} steps; the test comes after them",
            f"run folder: {where}",
            "dry run: no step was taken and nothing was written; without dry_run=true the run starts",
            sep="\n",
            flush=True,
        )
    return Outcome(run_dir, 0)


def check_begun(run_dir: Path, config: Config, task: Task, model: DualEncoder) -> None:
    """Raise `UserError` when a run that would continue began with other training clips or frozen weights."""
    if (run_dir / "clips.json").is_file():
        claim_clips(run_dir, config.dataset.shards, *task.training_clips())
    weights_digest(run_dir, model.frozen_state_dict())


def timed_pass(
    engine: Engine, loader: Loader, requests: Sequence[ClipRequest], draw: ConceptDraw
) -> tuple[Tensor, dict[str, Tensor], float]:
    """The loss of a micro-batch after its backward pass, its parts, and the seconds from the first byte on.

    A training decodes ahead, so that its steps take less where other cores decode.
    """
    started = time.perf_counter()
    batch = next(loader.stream(iter([requests])))
    losses = engine.forward(batch, draw)
    loss = total_loss(losses)
    if not bool(torch.isfinite(loss)):
        raise UserError(f"the loss of the first batch is {loss.item()}: clips {', '.join(batch.ids)}")
    engine.backward(loss)  # holds the most memory
    if batch.video.is_cuda:
        torch.cuda.synchronize(batch.video.device)
    return loss, losses, time.perf_counter() - started


def check_batch(batch: Batch, requests: list[ClipRequest], config: Config) -> None:
    """Shape, labels and order of a batch are those of its requests. Raises `UserError` with both."""
    clip, size = config.dataset.clip, config.loader.crop
    shape = (len(requests), clip.frames, 3, size, size)
    if tuple(batch.video.shape) != shape:
        raise UserError(
            f"loader.backend={config.loader.backend} gave video of shape {list(batch.video.shape)} where "
            f"dataset.clip.frames and loader.crop ask for {list(shape)}"
        )
    clips = list(zip(batch.ids, batch.labels.tolist(), strict=True))
    if clips != (asked := [(request.record.key, request.label) for request in requests]):
        raise UserError(f"loader.backend={config.loader.backend} gave clips {clips} where {asked} were asked for")
