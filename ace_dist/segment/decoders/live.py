"""The label of a live stream, window by window: Viterbi's costs, decided once and never taken back.

`decode_viterbi` looks back from the end of a video; here a change must be said before what follows is known. It is said
at the first window at which Viterbi, bound to all that was said before, would change: when for some other label the sum
of its lead over the present one, over `minimum` windows or more up to now, exceeds the switching cost (Page's CUSUM
test with a shortest run). So each label stays for `minimum` windows at least, and a change is said at the earliest
`minimum` windows after it began.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LiveDecision:
    """`label`: a column of the scores; `start_s`: when it seems to have begun; `means` [K] of the last windows."""

    label: int
    start_s: float
    is_new: bool
    means: Floats


class LiveDecoder:
    """Takes scores [K] of one window after the other. It holds `minimum` of them, whatever the length of the stream."""

    def __init__(self, minimum: int, switch_cost: float) -> None:
        self.minimum, self.switch_cost = minimum, switch_cost
        self.restart()

    def restart(self) -> None:
        """Forget all: what comes next has nothing to do with what was."""
        self.recent: deque[tuple[float, Floats]] = deque(maxlen=self.minimum)
        self.label: int | None = None
        self.start_s, self.windows = 0.0, 0  # since the last change
        self.lead = self.lead_s = np.zeros(0)  # [K] of each label's lead before `recent`, and when it began

    def step(self, time_s: float, scores_K: Floats) -> LiveDecision | None:
        """The label after a window that stands for the time from `time_s` on; None in the first `minimum` - 1."""
        if self.windows >= self.minimum:
            self.join(*self.recent[0])
        self.recent.append((time_s, scores_K))
        self.windows += 1
        is_new = self.windows >= self.minimum and self.change()
        if self.label is None:
            return None
        means = np.exp([row for _, row in self.recent]).mean(0)
        return LiveDecision(self.label, self.start_s, is_new, means)

    def join(self, time_s: float, scores_K: Floats) -> None:
        """Let a window older than the last `minimum` lengthen each label's lead, or end it."""
        longer = self.lead + scores_K - scores_K[self.label]
        self.lead_s = np.where(longer <= 0, np.inf, np.minimum(self.lead_s, time_s))
        self.lead = np.maximum(longer, 0.0)

    def change(self) -> bool:
        """Choose the first label, or change to the best other one when its lead exceeds the cost."""
        total = np.sum([row for _, row in self.recent], axis=0)
        if self.label is None:
            best, first_s = int(total.argmax()), self.recent[0][0]
        else:
            lead = self.lead + total - total[self.label]
            best = int(lead.argmax())
            if best == self.label or lead[best] <= self.switch_cost:
                return False
            first_s = min(float(self.lead_s[best]), self.recent[0][0])
        self.label, self.start_s, self.windows = best, first_s, 0
        self.lead, self.lead_s = np.zeros_like(total), np.full(len(total), np.inf)
        return True
