"""Windows and labels matched by optimal transport that keeps neighbours together (ASOT, arXiv 2404.01518).

Fused Gromov-Wasserstein transport, unbalanced towards the labels: a plan T [N, K] with row sums 1/N minimises

    (1 - a) <C, T>  +  a sum_{n m k l} Cx[n, m] Cy[k, l] T[n, k] T[m, l]  +  balance * KL(column sums || uniform)

C are costs of putting window n under label k; Cx is 1/radius for windows within `radius` of each other, Cy is 1 for two
different labels. The middle term costs windows near in time that carry different labels.
"""

import numpy as np
import numpy.typing as npt

from ace_dist.segment.decoders.argmax import moving_sum

STEPS = 50  # of mirror descent; the plan moves little after thirty
STEP = 1.6  # its length, for costs that span 0 to 1


def decode_transport(
    scores_NK: npt.NDArray[np.float64],
    radius: int = 4,
    structure: float = 0.4,
    balance: float = 0.1,
    prior_NK: npt.NDArray[np.float64] | None = None,
) -> npt.NDArray[np.int64]:
    """Class of each window: the label that gets most of its mass in the plan.

    `prior_NK`: costs (0 to 1) added to C, such as the distance from where a procedure expects the label. Scores are
    brought to costs between 0 and 1, so that one set of parameters serves all models. Linear in N.
    """
    windows, classes = scores_NK.shape
    if classes == 1:
        return np.zeros(windows, np.int64)
    low, high = scores_NK.min(), scores_NK.max()
    costs = (high - scores_NK) / max(high - low, 1e-12)
    if prior_NK is not None:
        costs = costs + prior_NK
    plan = np.full((windows, classes), 1.0 / classes)  # rows sum to 1: N times the transport plan
    for _ in range(STEPS):
        near = (moving_sum(plan, radius) - plan) / (2 * radius)  # share of each label about a window
        apart = near.sum(1, keepdims=True) - near  # of other labels
        share = plan.mean(0) * classes  # 1 where a label has its uniform share
        gradient = (1 - structure) * costs + 2 * structure * apart + balance * np.log(np.maximum(share, 1e-12))
        logits = np.log(np.maximum(plan, 1e-300)) - STEP * gradient
        plan = np.exp(logits - logits.max(1, keepdims=True))
        plan /= plan.sum(1, keepdims=True)
    return np.asarray(plan.argmax(1), np.int64)
