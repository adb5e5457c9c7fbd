"""The training loop: fetch, forward, backward, step, log, save."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ace_dist.data.clips import ClipRequest, TrainPlan
from ace_dist.data.loading import make_loader
from ace_dist.distributed import seed_everything
from ace_dist.methods import build_objective, prepare
from ace_dist.methods.task import build_model, load_task
from ace_dist.models.weights import save_safetensors
from ace_dist.training.checkpoints import Checkpoints
from ace_dist.training.engine import Engine, micro_batch_size
from ace_dist.training.monitor import Monitor
from ace_dist.training.run_folder import claim
from ace_dist.training.schedule import total_steps

if TYPE_CHECKING:
    from ace_dist.config import Config
    from ace_dist.distributed import Ranks
    from ace_dist.methods.task import Task

__all__ = ["train"]


def train(config: Config, ranks: Ranks) -> Path | None:
    """Train a run to its end, continuing it when its folder holds a checkpoint. Every rank calls this.

    Returns the run's folder, or `None` when `training.stop_after_steps` ended it before its last step.
    """
    config = prepare(config)
    run_dir = Path(config.run_dir)
    micro_batch = micro_batch_size(config, ranks.world)
    if ranks.is_first:
        claim(run_dir, config)
    ranks.barrier()
    seed_everything(config.seed)
    task = load_task(config)
    model = build_model(config.model, config.seed).to(ranks.device)
    objective = build_objective(config, model, task.classes.base, task.trees)
    records, labels = task.training_clips()
    plan = TrainPlan(
        records, labels, config.dataset.clip, config.loader, config.training.batch_size, config.seed,
        ranks.rank, ranks.world,
    )  # fmt: skip
    steps = total_steps(config.training, len(records))
    engine = Engine(config, objective, ranks, steps)
    checkpoints = Checkpoints(run_dir, engine, ranks, config.training)
    if ranks.is_first:
        print(describe(task, plan, engine, steps), flush=True)
        save_safetensors(model.frozen_state_dict(), run_dir / "model" / "frozen.safetensors")
    start = checkpoints.restore()
    last = min(steps, start + (config.training.stop_after_steps or steps))
    loader = make_loader(config.dataset.shards, config, ranks.device)
    stream = loader.stream(micro_batches(plan, start, last, micro_batch))
    with Monitor(run_dir, ranks, start, steps, config.training.log_every_steps, config.training.batch_size) as monitor:
        model.train()
        for step in range(start, last):
            draw = objective.sampler.draw(step)  # the same on every rank
            rates = engine.set_learning_rates(step)
            for micro in range(engine.accumulation):
                batch = next(stream)  # decoded on the device, already normalised
                part = ranks.rank * engine.accumulation + micro  # of the global batch
                model.set_step(config.seed, step, part, ranks.world * engine.accumulation)
                losses = engine.forward(batch, draw)
                engine.backward(losses.total)
                engine.step()
                monitor.add(losses)
            monitor.record(step + 1, (step + 1) * plan.batch_size / len(records), rates, loader.wait_s)
            if checkpoints.due(step + 1):
                checkpoints.save(step + 1)
    loader.close()
    checkpoints.save(last)
    if last < steps:
        if ranks.is_first:
            print(f"stopped after step {last} of {steps}; the same command continues", flush=True)
        return None
    if ranks.is_first:
        save_safetensors(model.trainable_state_dict(), run_dir / "model" / "trained.safetensors")
    ranks.barrier()
    return run_dir


def micro_batches(plan: TrainPlan, start: int, end: int, size: int) -> Iterator[list[ClipRequest]]:
    """This rank's micro-batches of steps `start` to `end`, in order."""
    for step in range(start, end):
        requests = plan.requests(step)
        for first in range(0, len(requests), size):
            yield requests[first : first + size]


def describe(task: Task, plan: TrainPlan, engine: Engine, steps: int) -> str:
    """What is about to be trained, for the console."""
    base, novel = len(task.classes.base), len(task.classes.novel)
    trainable = {
        name: sum(p.numel() for p in params) for name, params in engine.module.model.trainable_parameters().items()
    }
    every = sum(p.numel() for p in engine.module.model.parameters())
    return (
        f"classes: {base} base, {novel} novel; training clips: {len(plan.records)}\n"
        f"parameters: {every:,}, of which train {trainable['video']:,} (video) and {trainable['text']:,} (text)\n"
        f"phrases: {len(engine.module.bank)} encoded once ({engine.module.bank.memory_mib:.2f} MiB)\n"
        f"steps: {steps} of {plan.batch_size} clips ({plan.steps_per_epoch} an epoch) on {engine.ranks.world} rank(s), "
        f"{'bf16' if engine.bf16 else 'fp32'} on {engine.ranks.device}"
    )
