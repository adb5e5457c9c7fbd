"""Losses on the text side alone, beside the concept loss; none of them is in the paper, each is off by default.

Shapes: P distinct phrases of a step, D width, C classes, S phrases of a label set, grouped by class.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize


def pull_to_start(trained: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Tensor:
    """Half the squared distance of the weights from where they began (L2-SP: Li et al., ICML 2018)."""
    return 0.5 * torch.stack([(trained[name].float() - start[name]).square().sum() for name in trained]).sum()


def changed_similarities(text_PD: Tensor, start_PD: Tensor) -> Tensor:
    """Mean squared change of the cosine of each pair of phrases since the start (relational distillation: Park et al.,
    CVPR 2019). Words may move, but not towards or away from each other.
    """
    now, before = (normalize(part.float(), dim=1) for part in (text_PD, start_PD))
    return (now @ now.T - before @ before.T).square().mean()


def concept_margin(text_SD: Tensor, sizes: Sequence[int], margin: float) -> Tensor:
    """How far phrases fall short of being nearer to their own class's mean than to any other's by `margin`, on average.

    Within against between, as Fisher's criterion, with the margin of cosines of CosFace (Wang et al., CVPR 2018). Of
    one class alone there is nothing to tell apart: 0.
    """
    units_SD = normalize(text_SD.float(), dim=1)
    means_CD = normalize(torch.stack([group.mean(0) for group in units_SD.split(list(sizes))]), dim=1)
    if len(sizes) < 2:
        return units_SD.sum() * 0
    classes_S = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(units_SD.device)
    cosines_SC = units_SD @ means_CD.T
    own_S = cosines_SC.gather(1, classes_S[:, None])[:, 0]
    others_S = cosines_SC.scatter(1, classes_S[:, None], -torch.inf).amax(1)
    return (margin - own_S + others_S).relu().mean()
