"""Each decoder finds what exhaustive search finds, and does what its parameters say."""

import itertools

import numpy as np
import pytest

from ace_dist.segment.decoders import DecoderConfig, build_decoder
from ace_dist.segment.decoders.argmax import decode_argmax
from ace_dist.segment.decoders.live import LiveDecoder
from ace_dist.segment.decoders.transport import decode_transport
from ace_dist.segment.decoders.viterbi import decode_viterbi
from ace_dist.segment.metrics import f1_at
from ace_dist.utils.errors import ConfigError


def lengths(labels) -> list[int]:
    return [len(list(group)) for _, group in itertools.groupby(labels)]


def best_path(scores, minimum, costs):
    """Every labelling of the windows, tried."""
    windows, classes = scores.shape
    found, value = None, -np.inf
    for labels in itertools.product(range(classes), repeat=windows):
        if min(lengths(labels)) >= minimum:
            changes = sum(costs[a][b] for a, b in itertools.pairwise(labels) if a != b)
            total = scores[range(windows), labels].sum() - changes
            if total > value:
                found, value = labels, total
    return list(found)


@pytest.mark.parametrize("minimum, cost", [(1, 0.0), (1, 1.5), (2, 0.4), (3, 0.0)])
@pytest.mark.parametrize("table", [False, True])
def test_viterbi_equals_exhaustive_search(minimum, cost, table, fresh_seed):
    rng = np.random.default_rng([fresh_seed, minimum, table])
    for _ in range(4):
        scores = rng.normal(size=(8, 3))
        costs = cost + (rng.random((3, 3)) if table else np.zeros((3, 3)))
        found = decode_viterbi(scores, minimum, costs if table else cost)
        assert found.tolist() == best_path(scores, minimum, costs)


def test_a_video_shorter_than_two_segments_gets_one_label():
    scores = np.array([[0.0, 1.0], [3.0, 0.0], [0.0, 1.0]])
    assert decode_viterbi(scores, minimum=2).tolist() == [0, 0, 0]
    assert decode_viterbi(scores[:, :1], minimum=1).tolist() == [0, 0, 0]


def test_argmax_takes_the_majority_about_a_window():
    best = [0, 0, 1, 0, 0, 1, 1, 1]
    scores = np.eye(2)[best]
    assert decode_argmax(scores).tolist() == best
    assert decode_argmax(scores, median=3).tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def noisy_timeline(rng, segments=12, classes=4, noise=1.3):
    order = [int(rng.integers(classes))]
    while len(order) < segments:
        order.append(int((order[-1] + 1 + rng.integers(classes - 1)) % classes))
    truth = np.repeat(order, rng.integers(8, 16, segments))
    return np.eye(classes)[truth] * 2 + rng.normal(0, noise, (len(truth), classes)), truth


def test_viterbi_and_transport_repair_what_argmax_breaks(fresh_seed):
    rng = np.random.default_rng(fresh_seed)
    scores = {name: [] for name in ("none", "viterbi", "transport")}
    for _ in range(10):
        table, truth = noisy_timeline(rng)
        truth = truth.tolist()
        scores["none"].append(f1_at(decode_argmax(table).tolist(), truth, 0.5))
        scores["viterbi"].append(f1_at(decode_viterbi(table, 4, 3.0).tolist(), truth, 0.5))
        scores["transport"].append(f1_at(decode_transport(table, 4).tolist(), truth, 0.5))
    means = {name: np.mean(values) for name, values in scores.items()}
    assert means["viterbi"] > means["none"] + 40 and means["transport"] > means["none"] + 40


def test_transport_without_structure_is_argmax_and_its_prior_moves_labels(fresh_seed):
    rng = np.random.default_rng(fresh_seed)
    scores = rng.normal(size=(40, 3))
    assert (decode_transport(scores, 3, structure=0.0, balance=0.0) == scores.argmax(1)).all()
    prior = np.ones((40, 3))
    prior[:, 2] = 0  # two full ranges of scores below the others
    assert (decode_transport(scores, 3, 0.0, 0.0, prior_NK=2 * prior) == 2).all()


def test_times_become_windows_and_bad_parameters_are_named():
    scores = np.eye(2)[[0, 0, 0, 1, 0, 0, 0, 0]] * 9
    scores[3, 1] = 20.0
    assert min(lengths(build_decoder(DecoderConfig(minimum_s=1.0, switch_cost=0.0), 0.5)(scores))) == 2
    assert build_decoder(DecoderConfig("argmax", median_s=1.5), 0.5)(scores).tolist() == [0] * 8
    with pytest.raises(ConfigError, match="decoder=hmm is not one of argmax"):
        DecoderConfig("hmm")
    with pytest.raises(ConfigError, match="minimum_s=-1"):
        DecoderConfig(minimum_s=-1)


def first_change(scores, begin, label, minimum, cost):
    """When, from window `begin` on, a label must change, to which, and where that began: every start is tried."""
    for now in range(begin + minimum - 1, len(scores)):
        starts = range(begin, now - minimum + 2)
        if label is None:
            return now, int(scores[begin : now + 1].sum(0).argmax()), begin
        leads = [(float((scores[j : now + 1, k] - scores[j : now + 1, label]).sum()), k, j)
                 for k in range(scores.shape[1]) if k != label for j in starts]  # fmt: skip
        lead, best, start = max(leads)
        if lead > cost:
            return now, best, start
    return None


@pytest.mark.parametrize("minimum, cost", [(1, 0.0), (1, 2.0), (3, 0.5), (4, 3.0)])
def test_live_labels_change_at_the_first_window_that_pays(minimum, cost, fresh_seed):
    rng = np.random.default_rng([fresh_seed, minimum])
    scores = rng.normal(size=(60, 4)) + 1.5 * np.eye(4)[rng.integers(4, size=15).repeat(4)]
    decoder = LiveDecoder(minimum, cost)
    steps = [decoder.step(float(n), row) for n, row in enumerate(scores)]
    wanted, begin, label = {}, 0, None
    while (found := first_change(scores, begin, label, minimum, cost)) is not None:
        now, label, start = found
        wanted[now], begin = (label, start), now + 1
    assert {n: (step.label, step.start_s) for n, step in enumerate(steps) if step and step.is_new} == wanted
    assert steps[: minimum - 1] == [None] * (minimum - 1) and all(steps[minimum - 1 :])
    assert len(wanted) > 1 and min(np.diff(list(wanted))) >= minimum
    assert np.allclose(steps[-1].means, np.exp(scores[-minimum:]).mean(0))


def test_the_past_is_decided_without_the_future(rng):
    scores = rng.normal(size=(80, 5))
    other = np.concatenate([scores[:40], rng.normal(size=(40, 5))])
    said = []
    for table in (scores, other):
        decoder = LiveDecoder(3, 1.0)
        said.append([step and step.label for step in map(decoder.step, map(float, range(80)), table)])
    assert said[0][:40] == said[1][:40] and said[0] != said[1]
