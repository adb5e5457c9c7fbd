"""What surrounds the steps of a run: fixed steps for garbage, deterministic torch; both are undone on leaving."""

import gc
import os

import pytest
import torch

from ace_dist.train.callbacks import GarbageCollection, StepEnd
from ace_dist.utils.determinism import WORKSPACE, deterministic
from ace_dist.utils.errors import RunError


class Cycle:
    """Two objects that hold each other: only the collector frees them."""

    freed = 0

    def __init__(self):
        self.other = [self]

    def __del__(self):
        Cycle.freed += 1


def torch_state():
    """All that `deterministic` touches."""
    flags = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
        flags.deterministic, flags.benchmark, os.environ.get(WORKSPACE),
        torch.utils.deterministic.fill_uninitialized_memory,
    )  # fmt: skip


@pytest.fixture
def automatic():
    """Python's own collection on before, whatever it was, and as it was after."""
    was_on = gc.isenabled()
    gc.enable()
    yield
    (gc.enable if was_on else gc.disable)()


def test_garbage_is_collected_at_the_steps_asked_for_and_at_no_other(automatic, monkeypatch):
    """However many objects are made between: with the automatic collection on, thousands of cycles would set it off."""
    monkeypatch.setattr(Cycle, "freed", 0)
    with GarbageCollection(3) as garbage:
        counts = []
        for done in range(1, 7):
            for _ in range(5000):
                Cycle()
            garbage.on_step_end(StepEnd(done, 0.0, {}, 0.0))
            counts.append(Cycle.freed)
    assert counts == [0, 0, 15000, 15000, 15000, 30000]


@pytest.mark.parametrize("every", [0, 2])
def test_the_automatic_collection_is_back_after_an_error_too(automatic, every):
    """0 never switches it off; a program that had it off keeps it off."""
    with pytest.raises(ZeroDivisionError), GarbageCollection(every):
        assert gc.isenabled() == (every == 0)
        1 / 0  # noqa: B018
    assert gc.isenabled()
    gc.disable()
    with GarbageCollection(every):
        pass
    assert not gc.isenabled()


@pytest.mark.parametrize("workspace", [None, ":16:8"])
def test_deterministic_mode_sets_what_torch_documents_and_undoes_it(monkeypatch, workspace):
    """A user's own workspace setting stays; the flags are back after an error."""
    monkeypatch.delenv(WORKSPACE, raising=False)
    if workspace:
        monkeypatch.setenv(WORKSPACE, workspace)
    before = torch_state()
    with pytest.raises(ZeroDivisionError), deterministic(True):
        assert torch_state() == (True, False, True, False, workspace or ":4096:8", False)
        1 / 0  # noqa: B018
    assert torch_state() == before
    with deterministic(False):
        assert torch_state() == before


def test_an_operator_without_a_deterministic_form_is_named():
    """`put_` has none on any device; other errors pass as they are."""
    with (
        pytest.raises(
            RunError, match=r"deterministic=true, but put_ has no deterministic form.* in another folder \(run=DIR\)"
        ),
        deterministic(True),
    ):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
    with pytest.raises(RuntimeError, match="size of tensor"), deterministic(True):
        torch.zeros(3) + torch.zeros(2)
