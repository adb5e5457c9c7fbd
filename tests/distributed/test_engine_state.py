"""Every ZeRO stage and precision trains alike, stops, and continues to the last bit; two gloo ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ports import free_port

pytestmark = pytest.mark.slow
RUNS = [f"zero{stage} {precision}" for precision in ("fp32", "bf16") for stage in range(4)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What two ranks found, see `engine_worker.py`."""
    out = tmp_path_factory.mktemp("engine") / "found.json"
    worker = Path(__file__).with_name("engine_worker.py")
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(worker), str(out)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=500)
        assert rank.returncode == 0, errors
    return json.loads(out.read_text())


@pytest.mark.parametrize("run", RUNS)
def test_a_stopped_run_continues_to_the_last_bit(found, run):
    """Weights and momentum read from one engine and put into another: the same losses and the same end, bit by bit."""
    facts = found["runs"][run]
    assert facts["moved"], "the steps after the stop changed nothing: the comparison would be empty"
    assert facts["lost_in_loading"] == []
    assert facts["continued"] == facts["losses"][-len(facts["continued"]) :]
    assert facts["different_at_the_end"] == []


@pytest.mark.parametrize("run", RUNS)
def test_every_stage_trains_as_torch_alone_does(found, run):
    """Losses of two ranks under DeepSpeed against torch's own SGD and clipping on the whole batch."""
    tolerance = 1e-4 if run.endswith("fp32") else 0.1
    assert found["runs"][run]["losses"] == pytest.approx(found["plain"], rel=tolerance)


@pytest.mark.parametrize("run", RUNS)
def test_the_average_of_the_weights_is_the_average_of_the_weights(found, run):
    """In fp32 under every stage, across a stop, against float64: rounding of fp32 alone, also where bf16 computes."""
    facts = found["average"][run]
    assert facts["lost"] == []
    assert facts["apart"] < 1e-6 and facts["from_last"] > 1e-3


def test_a_run_of_one_stage_continues_under_another(found):
    """What ZeRO 3 left, ZeRO 2 continues: a checkpoint does not know its stage."""
    assert found["zero3 continued by zero2"] == pytest.approx(found["runs"]["zero3 fp32"]["continued"], rel=1e-5)


@pytest.mark.parametrize("run", RUNS)
def test_lora_trains_under_every_stage(found, run):
    """Both factors of every update move and continue to the last bit. TimeSformer's blocks read some of these weights
    outside of their layers, where ZeRO 3 has to gather them."""
    facts, plain = found["lora"][run], found["lora"]["zero0 fp32"]
    factors = {name.split(".lora_")[1][0] for name in facts["moved"] if ".lora_" in name}
    assert factors == {"A", "B"} and facts["different"] == []
    assert facts["continued"] == facts["losses"][-len(facts["continued"]) :]
    assert facts["losses"] == pytest.approx(plain["losses"], rel=1e-4 if run.endswith("fp32") else 0.1)


def test_clips_of_bytes_train_alike_under_every_stage(found):
    """The patch embedding uses its weights outside of the layer that owns them; ZeRO 3 has to gather them there."""
    plain, spread = found["bytes"]
    assert spread == pytest.approx(plain, rel=1e-4)
