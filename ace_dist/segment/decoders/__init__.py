"""From scores of windows [N, K] to a class of each window [N]: which decoder a user names, and its parameters.

Every decoder takes `scores` [N, K] (logits: S of Eq. 3 divided by the temperature, or log-probabilities) of windows
`stride_s` seconds apart, and returns class indices int64 [N]. Scores of "none of these", if there are any, are one
more column.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from ace_dist.segment.decoders.argmax import decode_argmax
from ace_dist.segment.decoders.transport import decode_transport
from ace_dist.segment.decoders.viterbi import decode_viterbi
from ace_dist.utils.errors import ConfigError

Scores = npt.NDArray[np.float64]
Classes = npt.NDArray[np.int64]
NAMES = ("argmax", "viterbi", "transport")


@dataclass(frozen=True)
class DecoderConfig:
    """Which decoder, and its parameters; `ace calibrate` chooses them on people that training saw."""

    name: str = "viterbi"  # argmax | viterbi | transport
    median_s: float = 1.0  # of argmax: length of the median filter
    minimum_s: float = 1.0  # of viterbi: shortest segment
    switch_cost: float = 4.0  # of viterbi: what a change of label must gain, in the unit of the scores
    radius_s: float = 2.0  # of transport: how far windows hold together
    structure: float = 0.4  # of transport: weight of holding together, 0 to 1
    balance: float = 0.1  # of transport: how strongly all labels are expected to occur

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ConfigError(f"decoder={self.name} is not one of {', '.join(NAMES)}")
        for name in ("median_s", "minimum_s", "switch_cost", "radius_s", "balance"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}={getattr(self, name)} must be a number of 0 or more")
        if not 0 <= self.structure < 1:
            raise ConfigError(f"structure={self.structure} must be at least 0 and below 1")


def build_decoder(
    config: DecoderConfig, stride_s: float, switch_costs: Scores | None = None
) -> Callable[[Scores], Classes]:
    """The decoder with its times turned into numbers of windows; `switch_costs` [K, K] are a procedure's (viterbi)."""

    def windows(seconds: float) -> int:
        return max(1, round(seconds / stride_s))

    if config.name == "argmax":
        return partial(decode_argmax, median=windows(config.median_s))
    if config.name == "viterbi":
        cost = config.switch_cost if switch_costs is None else switch_costs
        return partial(decode_viterbi, minimum=windows(config.minimum_s), switch_cost=cost)
    return partial(
        decode_transport, radius=windows(config.radius_s), structure=config.structure, balance=config.balance
    )
