"""One rank of `test_engine_state.py`: trains a small model under every ZeRO stage and precision, stops, continues.

Prints nothing; rank 0 writes what it found to the JSON file named on the command line.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch

from ace_dist.concepts import Action, SynonymTrees
from ace_dist.config import load_config
from ace_dist.models.build import build_model
from ace_dist.objectives import build_objective, total_loss
from ace_dist.train.engine import Engine
from ace_dist.utils.distributed import connect, disconnect

STAGES = (0, 1, 2, 3)
CLIPS, STEPS, STOP = 4, 5, 3  # of all ranks; steps in all; steps before the stop
VERBS = {
    "spin": {"spin": ["spin", "rotate"], "rotate": ["rotate", "spin"]},
    "lift": {"lift": ["lift", "raise"], "raise": ["raise", "lift"]},
    "push": {"push": ["push", "shove"], "shove": ["shove", "push"]},
}
ACTIONS = [Action("spin", "block"), Action("lift", "block"), Action("push", "pin")]


def settings(stage, precision):
    """The demo's small model, drawn at random."""
    return load_config(
        [f"deepspeed=zero{stage}", "model.init=random", "model.video.depth=3", "model.video.trained_blocks=2",
         "model.video.frames=2", "model.video.width=32", "model.video.heads=2", "model.video.image_size=24",
         "loader.crop=24", "model.text.depth=1", "model.text.width=32", "model.text.heads=2",
         f"training.batch_size={CLIPS}", "dataset.clip.frames=2", "training.clip_norm=1",
         f"training.precision={precision}", "training.device=cpu", "training.lr_text=0.002",
         "training.lr_video=0.002", "training.schedule=constant", "model.video.drop_path=0.3"]
    )  # fmt: skip


def objective_of(config):
    """The same weights every time."""
    trees = SynonymTrees(VERBS)
    return build_objective(config, build_model(config.model, config.seed), ACTIONS, trees)


def batch_of(config, step, ranks):
    """This rank's share of a global batch that depends on the step alone."""
    generator = torch.Generator().manual_seed(step)
    size = config.model.video.image_size
    shape = (CLIPS, config.dataset.clip.frames, 3, size, size)
    if config.loader.dtype == "uint8":
        video = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    else:
        video = torch.randn(shape, generator=generator)
    labels = torch.randint(len(ACTIONS), (CLIPS,), generator=generator)
    mine = slice(ranks.rank * CLIPS // ranks.world, (ranks.rank + 1) * CLIPS // ranks.world)
    return SimpleNamespace(video=video[mine], labels=labels[mine])


def train(engine, config, ranks, first, last):
    """Losses of steps `first` to `last`, over all ranks."""
    losses = []
    engine.module.train()
    for step in range(first, last):
        engine.set_learning_rates(step)
        engine.module.model.set_step(config.seed, step, ranks.rank, ranks.world)
        loss = total_loss(engine.forward(batch_of(config, step, ranks), engine.module.sampler.draw(step)))
        engine.backward(loss)
        engine.step()
        engine.average(step + 1)
        losses.append(ranks.mean({"loss": loss})["loss"])
    return losses


def average_of(config, ranks):
    """How far the average of an engine that trains, stops and goes on is from one taken in float64 of its weights.

    The largest difference, as a share of the largest weight of its tensor; the same from the last weights, and the
    parts that changed in the stop.
    """
    decay, config = 0.7, replace(config, training=replace(config.training, ema_decay=0.7))
    engine = Engine(config, objective_of(config), ranks, STEPS)
    wanted = {name: tensor.double() for name, tensor in engine.state()["weights"].items()}
    lost = []
    for step in range(STEPS):
        train(engine, config, ranks, step, step + 1)
        state = engine.state()
        wanted = {name: decay * wanted[name] + (1 - decay) * w.double() for name, w in state["weights"].items()}
        if step + 1 == STOP:
            engine = Engine(config, objective_of(config), ranks, STEPS)
            engine.load_state(state)
            lost = differences(state, engine.state())
    found, last = engine.weights(), engine.state()["weights"]

    def apart(other):
        return max(float((found[name] - other[name]).abs().max() / other[name].abs().max()) for name in found)

    return {"apart": apart(wanted), "from_last": apart(last), "lost": lost}


def bytes_losses(stage, ranks):
    """A few steps whose clips are bytes, which the patch embedding normalises with weights that ZeRO 3 spreads."""
    config = settings(stage, "fp32")
    config = replace(config, loader=replace(config.loader, dtype="uint8"))
    engine = Engine(config, objective_of(config), ranks, STEPS)
    engine.module.model.expect_clips(config.loader)
    return train(engine, config, ranks, 0, STOP)


LORA = {"lora_rank": 2, "lora_alpha": 8.0}


def lora_run(stage, precision, ranks):
    """The towers' last layers train by LoRA, stop, and go on: losses, those after the stop, what the stop changed."""
    config = settings(stage, precision)
    model = replace(config.model, video=replace(config.model.video, **LORA))
    model = replace(model, text=replace(model.text, trained_layers=1, **LORA))
    config = replace(config, model=model, training=replace(config.training, lr_video=0.1, lr_text=0.1))
    found, _ = stop_and_go_on(config, ranks)
    different = found["lost_in_loading"] + found["different_at_the_end"]
    return {name: found[name] for name in ("losses", "continued", "moved")} | {"different": different}


def stop_and_go_on(config, ranks):
    """All steps, and those after the stop by an engine that took up the state there: what differs, and that state."""
    engine = Engine(config, objective_of(config), ranks, STEPS)
    losses = train(engine, config, ranks, 0, STOP)
    stopped = engine.state()
    losses += train(engine, config, ranks, STOP, STEPS)
    again = Engine(config, objective_of(config), ranks, STEPS)
    again.load_state(stopped)
    kept = differences(stopped, again.state())
    continued = train(again, config, ranks, STOP, STEPS)
    return {
        "losses": losses, "continued": continued, "lost_in_loading": kept,
        "different_at_the_end": differences(engine.state(), again.state()),
        "moved": differences(stopped, engine.state()),
    }, stopped  # fmt: skip


def plain_losses(config, ranks):
    """The same training by torch alone: the whole batch on one rank, torch's SGD, no DeepSpeed."""
    objective = objective_of(config)
    groups = objective.model.trainable_parameters()
    optimizer = torch.optim.SGD(
        [{"params": groups["video"], "lr": config.training.lr_video},
         {"params": groups["text"], "lr": config.training.lr_text}],
        momentum=config.training.momentum, nesterov=config.training.nesterov,
        weight_decay=config.training.weight_decay,
    )  # fmt: skip
    losses = []
    objective.train()
    for step in range(STEPS):
        objective.model.set_step(config.seed, step, 0, 1)
        batch = batch_of(config, step, replace(ranks, rank=0, world=1))
        loss = total_loss(objective(batch.video, batch.labels, objective.sampler.draw(step)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*groups["video"], *groups["text"]], config.training.clip_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


def differences(a, b):
    """Names whose tensors are not the same to the last bit."""
    return [f"{part}/{name}" for part in a for name in a[part] if not torch.equal(a[part][name], b[part][name])]


def main(out):
    """Every stage and precision, one after the other."""
    ranks = connect("cpu")
    found = {"plain": plain_losses(settings(0, "fp32"), ranks), "runs": {}}
    states = {}
    for precision in ("fp32", "bf16"):
        for stage in STAGES:
            run, states[stage, precision] = stop_and_go_on(settings(stage, precision), ranks)
            found["runs"][f"zero{stage} {precision}"] = run
    found["average"] = {
        f"zero{stage} {precision}": average_of(settings(stage, precision), ranks)
        for precision in ("fp32", "bf16")
        for stage in STAGES
    }
    config = settings(2, "fp32")
    engine = Engine(config, objective_of(config), ranks, STEPS)
    engine.load_state(states[3, "fp32"])
    found["lora"] = {
        f"zero{stage} {precision}": lora_run(stage, precision, ranks)
        for precision in ("fp32", "bf16")
        for stage in STAGES
    }
    found["bytes"] = [bytes_losses(stage, ranks) for stage in (0, 3)]
    found["zero3 continued by zero2"] = train(engine, config, ranks, STOP, STEPS)
    if ranks.is_first:
        Path(out).write_text(json.dumps(found))
    disconnect()


if __name__ == "__main__":
    main(sys.argv[1])
