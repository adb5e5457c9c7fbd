"""Protects that measuring is free: no unlogged step waits for the device, and a profile changes no bit of a run.

Host reads are proved in two halves. A meta tensor has no values, so a forward, backward and optimizer step on the meta
device fail where they read one; then the real loop on a CPU is watched for every read of a tensor, by stage.
"""

import collections
import gzip
import json
import sys
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from ace_dist.concepts import Action, SynonymTrees
from ace_dist.config import load_config
from ace_dist.data.loader.base import Batch
from ace_dist.models.build import build_model
from ace_dist.models.text import FrozenText
from ace_dist.objectives import build_objective, total_loss
from ace_dist.train import trainer as loop
from ace_dist.train.callbacks import StepEnd
from ace_dist.train.engine import build_optimizer
from ace_dist.train.health import Watchdog
from ace_dist.train.metrics import Meters
from ace_dist.train.monitor import Monitor
from ace_dist.utils.parts import PartFlops

STEPS, LOGGED = 7, 3
VERBS = {
    "spin": {"spin": ["spin", "rotate"], "rotate": ["rotate", "spin"]},
    "lift": {"lift": ["lift", "raise"], "raise": ["raise", "lift"]},
}
READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")


def settings_of(world, folder, *settings):
    """A short run, logged at step `LOGGED` and its double, saved at the end alone."""
    return load_config(
        [*world, f"run={folder}", "training.batch_size=4",
         f"training.max_steps={STEPS}", f"training.log_every_steps={LOGGED}", "training.device=cpu", *settings]
    )  # fmt: skip


METHODS = {
    "ace": [],
    "ace, text layers": ["model.text.trained_layers=1"],
    **{name: [f"method={name}"] for name in ("procvlr", "vifi_ft", "vifi_pr", "bike", "text4vis", "lavila")},
}


@pytest.mark.parametrize("settings", METHODS.values(), ids=METHODS.keys())
def test_a_step_reads_nothing_from_the_device(settings, ranks, tmp_path):
    """Forward, backward, optimizer and the sums of an unlogged step, on tensors that have no values to read."""
    config = load_config(["model.init=random", *settings])
    actions = [Action("spin", "block"), Action("lift", "block")]
    objective = build_objective(config, build_model(config.model, 0), actions, SynonymTrees(VERBS)).to("meta")
    features = objective.text_features
    features.frozen = FrozenText(*(part.to("meta") for part in features.frozen))
    objective.train()
    groups = [{"params": params, "lr": 0.1} for params in objective.model.trainable_parameters().values() if params]
    optimizer = build_optimizer(groups, config.training)
    for group in optimizer.param_groups:
        group["fused"] = False  # torch's fused kernels refuse meta tensors; on a device they read nothing either
    size = config.loader.crop
    video = torch.empty(4, config.dataset.clip.frames, 3, size, size, device="meta")
    labels = torch.zeros(4, dtype=torch.int64, device="meta")
    with Monitor(tmp_path, ranks, 0, 10, config.training, Meters(ranks, 4, {})) as monitor:
        for step in range(2):
            objective.model.set_step(0, step, 0, 1)
            losses = objective(video, labels, objective.sampler.draw(step))
            loss = total_loss(losses)
            loss.backward()
            optimizer.step()
            monitor.on_micro_batch(losses, loss)
            monitor.on_step_end(StepEnd(step + 1, 0.0, {}, 0.0))
    with pytest.raises(RuntimeError, match="meta"):  # what a read would have done
        total_loss(losses).item()


class Reads(TorchFunctionMode):
    """Notes which functions of the project and of DeepSpeed bring values of tensors to the host, by step and stage."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.found = collections.defaultdict(collections.Counter)
        self.where = (0, "start")
        on_stage = Watchdog.on_stage

        def watched(watchdog, stage, step):
            on_stage(watchdog, stage, step)
            self.where = (step + 1, stage)

        monkeypatch.setattr(Watchdog, "on_stage", watched)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in READS:
            self.found[self.where][self.reader()] += 1
        return function(*args, **(kwargs or {}))

    def reader(self):
        """The nearest caller that is no part of torch: its package and name."""
        frame = sys._getframe(2)
        while frame is not None:
            parts = Path(frame.f_code.co_filename).parts
            for package in ("ace_dist", "ace_kernels", "deepspeed"):
                if package in parts and not frame.f_code.co_name.startswith("<"):
                    return f"{package} {parts[-1]} {frame.f_code.co_name}"
            frame = frame.f_back
        return "unknown"


@pytest.mark.slow
def test_the_loop_reads_losses_on_logged_steps_alone(small_world, ranks, tmp_path, monkeypatch):
    """On an unlogged step the loop reads what is on the host already, and DeepSpeed asks whether gradients are finite.

    `Health` looks at losses that have arrived on the host, and the flags live there. `ace_kernels` checks its arguments
    on a CPU only, its device form is in the meta test above.
    """
    take_steps = loop.take_steps
    reads = Reads(monkeypatch)

    def watched(*args):
        with reads:
            return take_steps(*args)

    monkeypatch.setattr(loop, "take_steps", watched)
    loop.train(settings_of(small_world(), tmp_path / "run"), ranks)
    on_host = {"ace_dist health.py is_finite", "ace_dist lost_ranks.py reduce"}
    for step in range(2, STEPS):
        found = {
            (stage, reader)
            for (at, stage), readers in reads.found.items()
            for reader in readers
            if at == step and not reader.startswith("ace_kernels")
        }
        ours = {reader for _, reader in found if not reader.startswith("deepspeed")}
        logged = {"ace_dist distributed.py mean"} if step % LOGGED == 0 else set()
        assert ours == on_host | logged, step
        assert found - {(stage, reader) for stage, reader in found if reader in ours} <= {
            ("step", "deepspeed utils.py is_invalid_grad_norm")
        }


def lines(folder):
    """What `metrics.jsonl` says of the training itself."""
    kept = ("step", "loss", "loss_fixed", "loss_random", "lr_video", "lr_text")
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in kept} for line in read]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_a_profile_names_the_parts_and_changes_no_bit(stage, small_world, ranks, tmp_path, capsys):
    settings = ["training.log_every_steps=1", f"deepspeed=zero{stage}"]
    loop.train(settings_of(small_world(), tmp_path / "plain", *settings), ranks)
    profiled = [*settings, "profile=true", "training.profile.after=2"]
    loop.train(settings_of(small_world(), tmp_path / "profiled", *profiled), ranks)
    plain, again = (lines(tmp_path / name) for name in ("plain", "profiled"))
    if stage == 3:  # its weights are gathered into buffers anew, and with their place in memory the last bit may change
        assert [line["loss"] for line in again] == pytest.approx([line["loss"] for line in plain], rel=1e-5)
    else:
        assert plain == again
    assert not (tmp_path / "plain" / "profile").exists()
    folder = tmp_path / "profiled" / "profile"
    parts = json.loads((folder / "parts-rank0.json").read_text())
    named = {"data", "patch embedding", "frozen blocks", "trained blocks", "head", "text", "loss", "forward",
             "backward", "flags", "optimizer", "communication"}  # fmt: skip
    assert named <= parts.keys()
    assert all(len(values) == 3 for values in parts.values())  # the steps of profile=true
    assert all(value > 0 for name in named for value in parts[name])
    with gzip.open(folder / "trace-rank0.json.gz") as file:
        events = json.load(file)["traceEvents"]
    labels = collections.Counter(event["name"] for event in events if event.get("cat") == "user_annotation")
    assert labels["part: backward"] == labels["part: data"] == labels["part: head"] == 3
    assert labels["part: frozen blocks"] == 3 and labels["part: trained blocks"] == 3 * 3  # all frozen ones at once
    out = capsys.readouterr().out
    assert "part of a step" in out and "no memory snapshot" in out and "median of 3 step(s)" in out
    summary = json.loads((tmp_path / "profiled" / "summary.json").read_text())
    assert (summary["first_step"], summary["last_step"]) == (1, STEPS) and "pace:" in out
    config = load_config(["experiment=demo"])  # the same FLOPs under every stage, whatever this rank holds of a weight
    tower, clip = build_model(config.model, 0).video, config.dataset.clip
    with PartFlops() as expected, torch.no_grad():
        tower.to("meta")(torch.empty(4, clip.frames, 3, config.loader.crop, config.loader.crop, device="meta"))
    by_part = summary["model_gflops_by_part"]
    assert all(by_part[name]["forward"] * 1e9 == pytest.approx(flops.forward) for name, flops in expected.flops.items())
    trained = sum(p.numel() for p in tower.parameters() if p.requires_grad)
    assert f"of which train {trained:,} (video)" in out


@pytest.mark.slow
def test_a_profile_that_the_end_cut_short_is_written_and_one_that_never_began_says_so(
    small_world, ranks, tmp_path, capsys
):
    run = settings_of(small_world(), tmp_path / "run", "training.profile.steps=4", "training.profile.after=5",
                      "training.profile.trace=false")  # fmt: skip
    loop.train(run, ranks)
    parts = json.loads((tmp_path / "run" / "profile" / "parts-rank0.json").read_text())
    assert len(parts["backward"]) == STEPS - 5 and not list((tmp_path / "run" / "profile").glob("trace*"))
    late = settings_of(small_world(), tmp_path / "late", "profile=true", "training.profile.after=100")
    loop.train(late, ranks)
    assert f"nothing recorded, as the run took {STEPS} steps" in capsys.readouterr().out
    assert not (tmp_path / "late" / "profile").exists()


@pytest.mark.gpu
def test_a_profile_on_a_gpu(small_world, tmp_path):
    """Times by events, a snapshot of the allocator, and the MFU that is measured there by default."""
    from ace_dist.utils.distributed import connect, disconnect

    settings = ["training.device=cuda", "profile=true", "training.profile.after=2", "training.profile.steps=2"]
    try:
        loop.train(settings_of(small_world(), tmp_path / "run", *settings), connect("cuda"))
    finally:
        disconnect()
    folder = tmp_path / "run" / "profile"
    parts = json.loads((folder / "parts-rank0.json").read_text())
    assert all(len(values) == 2 and min(values) >= 0 for values in parts.values()) and min(parts["backward"]) > 0
    assert (folder / "memory-rank0.pickle").stat().st_size > 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 0 < summary["mfu_percent"] < 100 and summary["memory_gib_by_part"]["activations_and_rest"] > 0


def test_deepspeed_does_not_synchronise_the_device(small_world, ranks, tmp_path, monkeypatch):
    """Its timers would, twice a step, which no watched read shows."""
    from deepspeed.accelerator import get_accelerator

    calls, on_stage, now = [], Watchdog.on_stage, []

    def watched(watchdog, stage, step):
        on_stage(watchdog, stage, step)
        now[:] = [(step, stage)]

    monkeypatch.setattr(Watchdog, "on_stage", watched)
    monkeypatch.setattr(get_accelerator(), "synchronize", lambda *_: calls.append(tuple(now)))
    loop.train(settings_of(small_world(), tmp_path / "run"), ranks)
    in_a_step = ("forward", "backward", "step", "collective")
    assert [call for call in calls if call and call[0][0] >= 2 and call[0][1] in in_a_step] == []


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_unlogged_steps_do_not_wait_for_the_gpu(device, small_world, tmp_path, monkeypatch):
    """CUDA itself refuses to synchronise from the forward pass to the flags of steps that are not logged.

    On a CPU this proves only that the test works.

    Left out: decoding, which has threads of its own (batches lie on the GPU already), the first steps, which compile
    and try kernels, and DeepSpeed's optimizer step, which waits for the norm of the gradient under every ZeRO stage.
    """
    from ace_dist.utils.distributed import connect, disconnect

    on_stage, build_loader, strict_steps = Watchdog.on_stage, loop.build_loader, []
    set_mode, synchronize = torch.cuda.set_sync_debug_mode, torch.cuda.synchronize
    if device == "cpu":
        set_mode, synchronize = (lambda mode: None), (lambda: None)

    def watched(watchdog, stage, step):
        on_stage(watchdog, stage, step)
        strict = stage in ("forward", "backward", "collective") and step >= 3
        set_mode("error" if strict and (step + 1) % LOGGED else "default")
        strict_steps.append(strict)

    class Prepared:
        """A loader whose batches are all there before the first is asked for."""

        def __init__(self, *args):
            self.loader, self.wait_s = build_loader(*args), 0.0

        def stream(self, batches):
            ready: list[Batch] = list(self.loader.stream(batches))
            synchronize()
            return iter(ready)

        def close(self):
            self.loader.close()

    monkeypatch.setattr(Watchdog, "on_stage", watched)
    monkeypatch.setattr(loop, "build_loader", Prepared)
    try:
        outcome = loop.train(settings_of(small_world(), tmp_path / "run", f"training.device={device}"), connect(device))
    finally:
        set_mode("default")
        disconnect()
    assert outcome.step == STEPS and sum(strict_steps) > 3
