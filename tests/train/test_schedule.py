"""Learning rates and the length of a run."""

import pytest

from ace_dist.config import TrainingConfig
from ace_dist.train.schedule import average_share, lr_factor, total_steps


def test_steps_of_procedurevrl():
    """15 epochs with drops after 11 and 14 of them: [1, 0.1, 0.01] (reference, section 0.4)."""
    settings = TrainingConfig()
    epochs = [lr_factor(settings, epoch * 100, 1500) for epoch in range(15)]
    assert epochs == pytest.approx([1.0] * 11 + [0.1] * 3 + [0.01])


def test_cosine_warmup_and_constant():
    """Cosine from 1 to 0 through one half; a linear warm-up that ends at its share of the run."""
    cosine = TrainingConfig(schedule="cosine")
    assert [lr_factor(cosine, s, 100) for s in (0, 50, 100)] == pytest.approx([1.0, 0.5, 0.0])
    warm = TrainingConfig(schedule="constant", warmup=0.1)
    assert [lr_factor(warm, s, 100) for s in (0, 4, 9, 10, 99)] == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("epochs", "clips", "batch", "limit", "steps"),
    [(15, 600, 16, None, 563), (1, 17, 16, None, 2), (15, 600, 16, 20, 20), (1.1, 100, 10, None, 11)],
)
def test_steps_cover_all_epochs(epochs, clips, batch, limit, steps):
    """Enough whole steps for every clip of every epoch: 15 · 600 / 16 = 562.5. As written: 1.1 · 100 = 110."""
    assert total_steps(TrainingConfig(epochs=epochs, batch_size=batch, max_steps=limit), clips) == steps


def test_an_average_over_the_last_steps_is_their_mean():
    """Ten steps, the last quarter: the weights after steps 8, 9 and 10, all alike; none without a setting."""
    weights, mean = [3.0, -1.0, 4.0, 1.0, 5.0, -9.0, 2.0, 6.0, 5.0, 3.5], 100.0
    for done, weight in enumerate(weights, start=1):
        mean += average_share(TrainingConfig(swa_start=0.75), done, 10) * (weight - mean)
        assert done > 7 or mean == pytest.approx(weight), "before it starts it is the weights themselves"
    assert mean == pytest.approx((6.0 + 5.0 + 3.5) / 3)
    assert average_share(TrainingConfig(swa_start=0.29), 31, 100) == 1 / 2, "0.29 * 100 < 29 in floats"
    assert average_share(TrainingConfig(ema_decay=0.9), 4, 10) == pytest.approx(0.1)
    assert average_share(TrainingConfig(), 4, 10) is None
