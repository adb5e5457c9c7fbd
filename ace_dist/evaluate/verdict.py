"""What a result comes to, in a sentence or two: against chance, and against other runs on the same clips."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ace_dist.evaluate.examples import Entry, hits, same_clips

LEVEL = 0.95
PARTS = {  # the first of them that was tested is what a run is for
    "srt": ("srt", "novel", "actions that training never showed, each under {sets} sets of words"),
    "novel": ("novel", "novel", "actions that training never showed"),
    "base": ("base", "base", "actions that training showed"),
}


def verdict(name: str, results: Mapping[str, Any]) -> str:
    """One sentence of `results.json`: what was tested, how much was right, and whether that is more than guessing."""
    part = tested(results)
    if part is None:
        return f"{name} was not tested."
    key, chance_key, what = PARTS[part]
    scores, guess = results[key], (results.get("chance") or {}).get(chance_key)
    score = scores["accuracy_mean" if part == "srt" else "accuracy"]
    what = what.format(sets=len(scores["runs"]) if part == "srt" else 1)
    sentence = f"{name} names {score:.1f} % of the test clips right, of {what}"
    within = (results.get("interval") or {}).get(key)
    if within is None or guess is None:
        return f"{sentence}." if guess is None else f"{sentence}; guessing gives {guess['accuracy']:.1f} %."
    low, high = within["accuracy"]
    place = "above" if low > guess["accuracy"] else "below" if high < guess["accuracy"] else "not different from"
    return f"{sentence} (95 %: {low:.1f} to {high:.1f}): {place} guessing, which gives {guess['accuracy']:.1f} %."


def tested(results: Mapping[str, Any]) -> str | None:
    return next((part for part, (key, _, _) in PARTS.items() if results[key] is not None), None)


def against(ours: Sequence[Entry], other: str, theirs: Sequence[Entry], groups: Mapping[str, str]) -> str:
    """A sentence on the difference of two runs over the same clips and label sets, with its paired interval.

    `groups`: the group of each clip by its id; without them there is no interval.
    """
    ids = ours[0]["ids"]
    rows = same_clips(ids, theirs[0])
    gain = hits(ours).mean(axis=0) - hits(theirs).mean(axis=0)[rows]
    if any(clip not in groups for clip in ids):
        return (
            f"Its difference to {other} is {100 * gain.mean():+.1f} points, without an interval: neither the "
            "shards, which are not here, nor predictions.json, which `ace evaluate` writes anew, say which clips are "
            "of one group."
        )
    mean, half, count = paired_interval(100 * gain, [groups[clip] for clip in ids])
    low, high = mean - half, mean + half
    place = f"ahead of {other}" if low > 0 else f"behind {other}" if high < 0 else f"not clearly apart from {other}"
    unit = f"{count} groups of clips" if count < len(ids) else f"{count} clips"
    return f"It is {place}: {mean:+.1f} points (95 %: {low:+.1f} to {high:+.1f}, paired over {unit})."


def paired_interval(gain: Any, groups: Sequence[str]) -> tuple[float, float, int]:
    """Mean of `gain` [N], half of its 95 % interval, and the number of groups that it rests on.

    Clips of one group resemble each other, so the deviation is that of the groups' sums (cluster-robust, with the
    factor G / (G - 1) and Student's t of G - 1). It is no less than that of the clips one by one and one more without
    a gain: groups that happen to gain the same do not show that others would. One group alone tells nothing of others:
    its clips count one by one.
    """
    from scipy.stats import t as student_t  # of an extra: classifying needs none

    _, member = np.unique(np.asarray(groups), return_inverse=True)
    if member.max() == 0:
        member = np.arange(len(gain))
    n, mean, count = len(gain), float(np.mean(gain)), int(member.max()) + 1
    if count < 2:
        return mean, math.inf, count
    sums = np.bincount(member, weights=gain - mean)
    alone = float(np.var(np.append(gain, 0.0), ddof=1)) / n
    error = math.sqrt(max(alone, float(np.square(sums).sum()) * count / (count - 1) / n**2))
    return mean, float(student_t.ppf((1 + LEVEL) / 2, count - 1)) * error, count
