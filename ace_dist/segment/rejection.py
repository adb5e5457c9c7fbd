"""None of these: when no label fits a window, and how often that is wrong.

A window is scored by how known it looks: the log-odds, from a logistic regression on four numbers, that it shows an
action and not background. The threshold is conformal (Vovk et al.; split conformal prediction): the quantile of the
scores of action windows of people that the regression did not see, so that at most a share `error_rate` of windows like
these falls below it. Without background to learn from (trimmed clips alone) the best label's cosine alone is looked at,
and clips asked without their own label stand for what none of the labels fits.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ace_dist.segment.metrics import expected_calibration_error
from ace_dist.utils.errors import UserError

Floats = npt.NDArray[np.float64]
RIDGE = 1.0  # weight of the squared coefficients, for standardised features
TEMPERATURES = (0.05, 20.0)  # factors of the model's own temperature between which the best one is looked for


@dataclass(frozen=True)
class Rejection:
    """Fitted numbers. `weights` [F + 1], the last one the intercept, of features standardised by `mean` and `scale`.

    `prototypes` [2, D]: unit mean embeddings of background and of actions; empty without background. `temperature`
    multiplies the model's own, so that probabilities are as often right as they say.
    """

    threshold: float
    error_rate: float
    temperature: float = 1.0
    weights: list[float] = field(default_factory=lambda: [1.0, 0.0])
    mean: list[float] = field(default_factory=lambda: [0.0])
    scale: list[float] = field(default_factory=lambda: [1.0])
    prototypes: list[list[float]] = field(default_factory=list)

    def scores(self, embeddings_ND: Floats, cosines_NK: Floats) -> Floats:
        """How known each window looks, [N]; of two or more labels K. Embeddings may be those of frames, [N, T, D]."""
        features = known_features(embeddings_ND, cosines_NK, np.asarray(self.prototypes))
        weights = np.asarray(self.weights)
        scores: Floats = (features - self.mean) / self.scale @ weights[:-1] + weights[-1]
        return scores

    def log_probabilities(self, embeddings_ND: Floats, cosines_NK: Floats, temperature: float) -> Floats:
        """Logarithms of the probabilities [N, K + 1] of all labels and, last, of none; `temperature` of the model.

        At the threshold "none" has one half.
        """
        labels = log_softmax(cosines_NK / (temperature * self.temperature))
        gap = self.scores(embeddings_ND, cosines_NK) - self.threshold
        known, none = -np.logaddexp(0.0, -gap), -np.logaddexp(0.0, gap)
        return np.concatenate([labels + known[:, None], none[:, None]], axis=1)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def known_features(embeddings_ND: Floats, cosines_NK: Floats, prototypes_2D: Floats) -> Floats:
    """The best cosine; with prototypes also its lead over the mean label, and the cosines to both prototypes."""
    best: Floats = cosines_NK.max(1)
    if not len(prototypes_2D):
        return best[:, None]
    near = unit(embeddings_ND) @ prototypes_2D.T
    return np.column_stack([best, best - cosines_NK.mean(1), near])


def unit(rows: Floats) -> Floats:
    """Unit vectors [N, D] of embeddings [N, D]; of those of T frames [N, T, D] (BIKE) that of the mean of theirs."""
    rows = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    return rows if rows.ndim == 2 else unit(rows.mean(1))


def log_softmax(logits_NK: Floats) -> Floats:
    shifted = logits_NK - logits_NK.max(1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result


@dataclass(frozen=True)
class LabelledWindows:
    """Windows to calibrate on. `labels` [N] are columns of `cosines` [N, K], or -1 for background."""

    embeddings: Floats
    cosines: Floats
    labels: npt.NDArray[np.int64]
    groups: npt.NDArray[np.str_]


def fit_rejection(windows: LabelledWindows, error_rate: float, temperature: float) -> tuple[Rejection, dict[str, Any]]:
    """Fit on half of the groups (people), calibrate on the others; also what is known of the result.

    `temperature` of the model. Raises `UserError` for an impossible rate, and when one group alone has actions.
    """
    if not 0 < error_rate < 1:
        raise UserError(f"error_rate={error_rate} must lie between 0 and 1, as 0.1 for one action in ten called none")
    groups = sorted(set(windows.groups[windows.labels >= 0].tolist()))
    if len(groups) < 2:
        raise UserError(
            f"calibration needs actions of two people (groups) or more, one half to fit on and one to calibrate on; "
            f"found {groups or 'none'}"
        )
    fitted = ~np.isin(windows.groups, groups[1::2])  # with the groups that show background alone
    fit = fit_known(windows, fitted)
    held = ~fitted & (windows.labels >= 0)
    unscaled = Rejection(0.0, error_rate, 1.0, *fit)
    scores = unscaled.scores(windows.embeddings[held], windows.cosines[held])
    cosines, labels = windows.cosines[held], windows.labels[held]
    factor = best_temperature(cosines / temperature, labels)
    rejection = Rejection(conformal_threshold(scores, error_rate), error_rate, factor, *fit)
    before, after = (np.exp(log_softmax(cosines / (temperature * each))) for each in (1.0, factor))
    known = {
        "windows": {"actions": int((windows.labels >= 0).sum()), "background": int((windows.labels < 0).sum())},
        "groups": {"fitted": groups[::2], "calibrated": groups[1::2]},
        "ece_before": expected_calibration_error(before, labels),
        "ece_after": expected_calibration_error(after, labels),
    }
    return rejection, known


def conformal_threshold(scores: Sequence[float] | Floats, error_rate: float) -> float:
    """The largest threshold that at least a share 1 - `error_rate` of exchangeable scores is at or above.

    Split conformal: the k-th smallest of n scores with k = floor(error_rate (n + 1)); below all of them when k is 0.
    """
    ordered = np.sort(np.asarray(scores, np.float64))
    place = int(np.floor(error_rate * (len(ordered) + 1)))
    return float(ordered[place - 1]) if place else float(np.nextafter(ordered[0], -np.inf))


def fit_known(
    windows: LabelledWindows, fitted: npt.NDArray[np.bool_]
) -> tuple[list[float], list[float], list[float], list[list[float]]]:
    """Weights, mean, scale and prototypes of `Rejection`, from the `fitted` windows."""
    action, background = fitted & (windows.labels >= 0), fitted & (windows.labels < 0)
    if background.any():
        rows = unit(windows.embeddings)
        prototypes = unit(np.stack([rows[background].mean(0), rows[action].mean(0)]))
        features = known_features(windows.embeddings[fitted], windows.cosines[fitted], prototypes)
        is_action = action[fitted]
    else:
        prototypes, cosines = np.empty((0, 0)), windows.cosines[fitted]
        features = np.concatenate([cosines, without_own(cosines, windows.labels[fitted])]).max(1, keepdims=True)
        is_action = np.arange(len(features)) < len(cosines)
    mean, scale = features.mean(0), np.maximum(features.std(0), 1e-9)
    weights = logistic_regression((features - mean) / scale, is_action)
    return weights.tolist(), mean.tolist(), scale.tolist(), prototypes.tolist()


def without_own(cosines_NK: Floats, labels_N: npt.NDArray[np.int64]) -> Floats:
    """Cosines of actions, as if their own labels were not asked for: those are below all others."""
    rows: Floats = np.where(np.arange(cosines_NK.shape[1]) == labels_N[:, None], -np.inf, cosines_NK)
    return rows


def logistic_regression(features_NF: Floats, positive: npt.NDArray[np.bool_]) -> Floats:
    """Weights [F + 1], the intercept last, of the least log loss, plus ridge; both classes count alike."""
    from scipy.optimize import minimize  # of an extra: classifying needs none

    rows = np.column_stack([features_NF, np.ones(len(features_NF))])
    sign = np.where(positive, 1.0, -1.0)
    weight = np.where(positive, 0.5 / max(positive.sum(), 1), 0.5 / max((~positive).sum(), 1))

    def loss(w: Floats) -> tuple[float, Floats]:
        margin = sign * (rows @ w)
        slope = -sign * weight / (1 + np.exp(np.clip(margin, -500, 500)))
        ridge = RIDGE / len(rows) * np.append(w[:-1], 0.0)
        return float(weight @ np.logaddexp(0, -margin) + 0.5 * ridge @ w), rows.T @ slope + ridge

    tight = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 10_000}  # the default stops some 1e-4 away from the optimum
    result: Floats = minimize(loss, np.zeros(rows.shape[1]), jac=True, method="L-BFGS-B", options=tight).x
    return result


def best_temperature(logits_NK: Floats, labels: npt.NDArray[np.int64]) -> float:
    """The factor that logits are divided by for the least log loss (temperature scaling, Guo et al., ICML 2017)."""
    from scipy.optimize import minimize_scalar

    places = np.arange(len(labels))

    def loss(log_factor: float) -> float:
        return float(-log_softmax(logits_NK / np.exp(log_factor))[places, labels].mean())

    low, high = np.log(TEMPERATURES)
    return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x))
