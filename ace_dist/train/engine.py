"""DeepSpeed: the engine around an objective, its optimizer, precision, batch arithmetic, and its state as tensors.

DeepSpeed keeps weights and momentum in a form that depends on the ZeRO stage, the precision and the number of ranks.
`Engine.state` gives both whole, in fp32, by the weights' own names, so that whatever stores them need not know of that.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ace_dist.concepts import ConceptDraw
from ace_dist.config import Config, TrainingConfig
from ace_dist.data.loader.base import Batch
from ace_dist.models.text import TextTower
from ace_dist.models.video import VideoTower
from ace_dist.objectives import ConceptObjective, PlacedDraw
from ace_dist.train.schedule import average_share, lr_factor
from ace_dist.utils.distributed import Ranks, uses_bf16
from ace_dist.utils.errors import ConfigError

TrainedState = dict[str, dict[str, Tensor]]  # "weights", the optimizer's own parts, "average" -> name -> fp32 tensor

# Parts of an optimizer's state, with torch's names for them. AdamW's count of steps is the training step.
STATE_PARTS = {"sgd": {"momentum": "momentum_buffer"}, "adamw": {"mean": "exp_avg", "square": "exp_avg_sq"}}
BEFORE_THE_LAYERS = ("embed", "cls_token", "conv1", "ln_pre", "norm_pre")  # in names of parameters
AVERAGE = {"average": "average"}  # of the weights; it lies beside the optimizer's state and is sharded as that is


def micro_batch_size(config: Config, world: int) -> int:
    """Clips of one forward pass on one rank. Raises `ConfigError` when the global batch cannot be shared equally."""
    parts = world * config.training.accumulation
    if config.training.batch_size % parts:
        raise ConfigError(
            f"training.batch_size={config.training.batch_size} cannot be shared by {world} ranks with "
            f"training.accumulation={config.training.accumulation}: choose a multiple of {parts}"
        )
    return config.training.batch_size // parts


def layer_factors(decay: float, tower: VideoTower | TextTower) -> dict[nn.Parameter, float]:
    """What the rate of each parameter of a tower is multiplied by (ELECTRA: Clark et al., ICLR 2020).

    The last layer and all that follows it have 1, each layer below `decay` of the one above, and what comes before the
    first layer once more.
    """
    layers, new = (tower.blocks, tower.fresh) if isinstance(tower, VideoTower) else (tower.parts.layers, ())
    above = {p: len(layers) - 1 - index for index, layer in enumerate(layers) for p in layer.parameters()}
    for name, parameter in tower.named_parameters():
        is_before = name.split(".")[0] not in new and any(part in name for part in BEFORE_THE_LAYERS)
        above.setdefault(parameter, len(layers) * is_before)
    return {parameter: decay**layers_above for parameter, layers_above in above.items()}


class Engine:
    """An objective under DeepSpeed. `module` stays the plain objective, for evaluation and export."""

    def __init__(self, config: Config, objective: ConceptObjective, ranks: Ranks, steps: int) -> None:
        import deepspeed

        self.settings = config.training
        self.ranks = ranks
        self.steps = steps
        self.module = objective
        self.bf16 = uses_bf16(config.training.precision, ranks.device)
        self.parts = STATE_PARTS[config.training.optimizer]
        if config.training.optimizer == "sgd" and not config.training.momentum:
            self.parts = {}
        self.averages = average_share(config.training, 0, steps) is not None
        if self.averages:
            self.parts = self.parts | AVERAGE
        optimizer = build_optimizer(self.parameter_groups(), config.training)
        settings = engine_settings(config, ranks.world, self.bf16)
        self.stage: int = settings.get("zero_optimization", {}).get("stage", 0)
        self.deepspeed, *_ = deepspeed.initialize(model=objective, optimizer=optimizer, config=settings)
        if self.stage == 3:
            for module, parameter in objective.model.cross_layer_parameters():
                deepspeed.zero.register_external_parameter(module, parameter)
        self.trained: dict[str, nn.Parameter] = {
            name: parameter for name, parameter in objective.model.named_parameters() if parameter.requires_grad
        }
        self.masters = self.plain_masters()
        self.finite: Tensor | None = None  # on the device: all gradients so far; None where DeepSpeed checks them
        fused = isinstance(optimizer, torch.optim.SGD)  # AdamW is not, and cannot leave a step out by itself
        if self.bf16 and fused and self.stage < 3 and not getattr(self.deepspeed.optimizer, "cpu_offload", False):
            self.check_on_device()
        if self.parts:
            self.start_state()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The trainable parameters of both towers, each group with its base rate; "new" with `training.lr_new`."""
        settings, model = self.settings, self.module.model
        rates = {"video": settings.lr_video, "text": settings.lr_text, "new": settings.lr_new or 0.0}
        trainable = model.trainable_parameters()
        if settings.lr_new is not None:
            new = set(map(id, model.video.new_parameters()))
            trainable["new"] = [parameter for parameter in trainable["video"] if id(parameter) in new]
            trainable["video"] = [parameter for parameter in trainable["video"] if id(parameter) not in new]
        return [
            {"params": params, "name": name, "lr": rates[name] * factor, "base_lr": rates[name] * factor}
            for name, whole in trainable.items()
            for factor, params in self.by_layer(whole).items()
        ]

    def by_layer(self, parameters: list[nn.Parameter]) -> dict[float, list[nn.Parameter]]:
        """Parameters by what `training.layer_decay` multiplies their rate by, the last layers at the end."""
        if self.settings.layer_decay == 1:
            return {1.0: parameters} if parameters else {}
        model, decay = self.module.model, self.settings.layer_decay
        factors = layer_factors(decay, model.video) | layer_factors(decay, model.text)
        groups: dict[float, list[nn.Parameter]] = {}
        for parameter in sorted(parameters, key=lambda p: factors.get(p, 1.0)):
            groups.setdefault(factors.get(parameter, 1.0), []).append(parameter)
        return groups

    def set_learning_rates(self, step: int) -> dict[str, float]:
        """Set the rates of a step; returns them by side, `lr_video` and `lr_text`, of its last layers."""
        factor = lr_factor(self.settings, step, self.steps)
        for state in self.base_optimizer.state.values():
            if "step" in state:
                state["step"].fill_(step)
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        return {f"lr_{group['name']}": group["lr"] for group in self.deepspeed.optimizer.param_groups}

    def forward(self, batch: Batch, draw: ConceptDraw | PlacedDraw) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.deepspeed(batch.video, batch.labels, draw)
        return losses

    def backward(self, loss: Tensor) -> None:
        """Backward pass; DeepSpeed averages over ranks and micro-batches."""
        self.deepspeed.backward(loss)

    def step(self) -> None:
        """The optimizer moves at the last micro-batch of an accumulation."""
        self.deepspeed.step()

    def check_on_device(self) -> None:
        """Let the device alone look at the gradients of a bf16 step. DeepSpeed reads their norms on the host, two
        numbers of every weight without ZeRO, and the device has nothing to do meanwhile.
        """
        wrapper = self.deepspeed.optimizer
        self.finite = torch.tensor(True, device=self.ranks.device)
        wrapper.clip_grad = 0.0  # `guard` does it
        if not self.stage:
            wrapper.step = self.move_masters
            return
        norm = wrapper.scaled_global_norm
        wrapper.check_grad_overflow = False
        wrapper.scaled_global_norm = lambda: self.guard(norm())

    @torch.no_grad()
    def move_masters(self) -> None:
        """An optimizer step without ZeRO in bf16."""
        assert self.masters is not None
        low: list[Tensor] = list(self.masters)
        high = list(self.masters.values())
        gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in low]
        self.guard(torch.stack(torch._foreach_norm(gradients, 2, dtype=torch.float32)).norm())
        for master, gradient in zip(high, gradients, strict=True):
            master.grad = gradient.float()
        self.base_optimizer.step()
        for master in high:
            master.grad = None
        torch._foreach_copy_(low, high)

    def guard(self, norm: Tensor) -> Tensor:
        """Tell the fused optimizer how to clip a gradient of this norm, and, once one was not finite, to move nothing
        until `Health` has noticed it.
        """
        assert self.finite is not None
        self.finite &= norm.isfinite()
        optimizer: Any = self.base_optimizer  # it looks for these names, which torch's GradScaler sets
        optimizer.found_inf = (~self.finite).float()
        if self.settings.clip_norm:
            optimizer.grad_scale = ((norm + 1e-6) / self.settings.clip_norm).clamp(min=1)
        return norm

    @property
    def skipped(self) -> bool:
        """Whether DeepSpeed has left a step out, as it does without a word for gradients that are not finite."""
        return bool(self.deepspeed.skipped_steps)

    @torch.no_grad()
    def average(self, done: int) -> None:
        """After `done` optimizer steps: move the average of the weights, a + share (w - a) (`average_share`).

        Each rank moves what it holds of the optimizer's fp32 weights, so nothing is sent and no rank holds the whole.
        """
        if (share := average_share(self.settings, done, self.steps)) is not None:
            for master, state in self.base_optimizer.state.items():
                state["average"].lerp_(master, share)

    def weights(self) -> dict[str, Tensor]:
        """The weights to test and to export, whole, in fp32, on the CPU: the average when there is one. Collective."""
        part = "average" if self.averages else "weights"
        return self.state(part)[part]

    def state(self, *parts: str) -> TrainedState:
        """Weights and optimizer state, or the named `parts` of it, whole, in fp32, on the CPU. Collective.

        Under ZeRO every tensor crosses the network once, which a sharded checkpoint would save; the method trains few
        parameters (30 million at the paper's scale: 120 MB of weights and as much momentum), and in return a
        checkpoint fits any number of ranks and any stage.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        def whole(parameter: nn.Parameter, key: str | None) -> Tensor:
            if self.masters is not None:
                master = self.masters[parameter]
                value = master if key is None else self.base_optimizer.state[master][key]
            else:
                value = safe_get_full_optimizer_state(parameter, key) if key else safe_get_full_fp32_param(parameter)
            assert value is not None
            return value.detach().to("cpu", torch.float32, copy=True)  # which later steps do not change

        keys = {"weights": None, **self.parts}
        return {
            part: {name: whole(parameter, keys[part]) for name, parameter in self.trained.items()}
            for part in parts or keys
        }

    def load_state(self, state: TrainedState) -> None:
        """Take over what `state` gave, on this or any other number of ranks, stage or precision. Collective."""
        import deepspeed

        for name, parameter in self.trained.items():
            weight = state["weights"][name].to(self.ranks.device)
            with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], 0, enabled=self.stage == 3):
                parameter.copy_(weight)
            self.set_master(parameter, weight, None)
            for part, key in self.parts.items():
                self.set_master(parameter, state[part][name].to(self.ranks.device), key)

    def set_master(self, parameter: nn.Parameter, value: Tensor, key: str | None) -> None:
        """Set the optimizer's fp32 copy of a weight, or the entry `key` of its state."""
        from deepspeed import utils

        if self.masters is not None:
            master = self.masters[parameter]
            with torch.no_grad():
                (master if key is None else self.base_optimizer.state[master][key]).copy_(value)
        elif self.stage == 3:  # by piece: DeepSpeed's whole-tensor setter does not know its own padding
            piece = torch.zeros(parameter.ds_tensor.numel(), device=value.device)  # type: ignore[attr-defined]
            own = value.flatten()[self.ranks.rank * len(piece) : (self.ranks.rank + 1) * len(piece)]
            piece[: len(own)] = own
            if key:
                utils.safe_set_local_optimizer_state(parameter, piece, key)
            else:
                utils.safe_set_local_fp32_param(parameter, piece)
        elif key:
            utils.safe_set_full_optimizer_state(parameter, value, key)
        else:
            utils.safe_set_full_fp32_param(parameter, value)

    @property
    def base_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer inside DeepSpeed's wrapper, or itself when there is none."""
        optimizer: torch.optim.Optimizer = getattr(self.deepspeed.optimizer, "optimizer", self.deepspeed.optimizer)
        return optimizer

    def plain_masters(self) -> dict[nn.Parameter, Tensor] | None:
        """Without ZeRO: the tensor that the optimizer moves for each parameter, itself or a copy in fp32."""
        if self.stage:
            return None
        if not self.bf16:
            return {parameter: parameter for parameter in self.trained.values()}
        wrapper = self.deepspeed.optimizer
        pairs = zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True)  # named so whatever the low precision is
        return {low: high for lows, highs in pairs for low, high in zip(lows, highs, strict=True)}

    def start_state(self) -> None:
        """Create the optimizer's state: zeros, which change no first step; an average starts at the weights.

        DeepSpeed makes the state at its first step, too late for a run that continues.
        """
        optimizer, wrapper = self.base_optimizer, self.deepspeed.optimizer
        flat = [p for group in optimizer.param_groups for p in group["params"]]
        for master in wrapper.fp32_partitioned_groups_flat if self.stage == 3 else flat:
            optimizer.state[master] = {key: torch.zeros_like(master) for key in self.parts.values()}
            if self.averages:
                optimizer.state[master]["average"] = master.detach().clone()
            if isinstance(optimizer, torch.optim.AdamW):
                optimizer.state[master]["step"] = torch.tensor(0.0)
        if self.stage in (1, 2):
            wrapper._lazy_init_hp_params_optimizer_state()  # links parameters to their pieces of it


def build_optimizer(groups: list[dict[str, Any]], settings: TrainingConfig) -> torch.optim.Optimizer:
    if settings.optimizer == "adamw":
        betas = (settings.betas[0], settings.betas[1])
        return torch.optim.AdamW(groups, lr=settings.lr_video, betas=betas, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        groups,
        lr=settings.lr_video,
        momentum=settings.momentum,
        nesterov=settings.nesterov and settings.momentum > 0,
        weight_decay=settings.weight_decay,
        fused=True,  # one pass over each weight, its gradient and its momentum, and no temporaries
    )


def engine_settings(config: Config, world: int, bf16: bool) -> dict[str, Any]:
    """DeepSpeed's own settings: those of `configs/deepspeed`, completed by what the rest of the configuration says."""
    settings = copy.deepcopy(config.deepspeed)
    derived = {
        "train_micro_batch_size_per_gpu": micro_batch_size(config, world),
        "gradient_accumulation_steps": config.training.accumulation,
        "train_batch_size": config.training.batch_size,
        "gradient_clipping": config.training.clip_norm,
        "bf16": {"enabled": bf16},
    }
    clash = sorted(set(derived) & set(settings))
    if clash:
        raise ConfigError(
            f"deepspeed.{clash[0]} is derived from training.batch_size, training.accumulation, training.clip_norm and "
            f"training.precision; set those instead"
        )
    stage = settings.get("zero_optimization", {}).get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise ConfigError(f"deepspeed.zero_optimization.stage={stage}: there are stages 0, 1, 2 and 3")
    # Its throughput timer, which nobody reads here, synchronises the device twice a step.
    settings.setdefault("timers", {}).setdefault("throughput", {}).setdefault("enabled", False)
    return {**settings, **derived}
