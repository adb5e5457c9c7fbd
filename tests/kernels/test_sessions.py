"""What needs a process of its own: the suite under the interpreter, the choice of implementation, the compiler."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ace_kernels import KernelChoiceError, choice

REGISTERS_OF_A_THREAD = 255  # CUDA C++ Programming Guide, technical specifications; what exceeds it is spilled


@pytest.fixture(autouse=True)
def device():
    """These tests set what they test themselves."""


def run_python(*arguments, **settings):
    """A fresh Python: the choice of an implementation and of the interpreter is settled once a process."""
    dropped = ("ACE_KERNELS", "TRITON_INTERPRET", "RANK", "PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS")
    environment = {k: v for k, v in os.environ.items() if k not in dropped} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment | settings, check=False
    )


@pytest.mark.parametrize("name", ["test_concept.py", "test_fused.py", "test_temporal_attention.py", "test_triton.py"])
def test_suite_under_the_interpreter(name):
    """Every test of the operators again, through the Triton kernels on the CPU."""
    done = run_python(
        "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not gpu", str(Path(__file__).with_name(name)),
        TRITON_INTERPRET="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]


def test_the_choice_is_printed_once_and_can_be_set(monkeypatch, capsys):
    """torch on the CPU by default, with the reason; a wrong or impossible setting is named."""
    for name in ("ACE_KERNELS", "TRITON_INTERPRET", "RANK"):
        monkeypatch.delenv(name, raising=False)
    choice.settle.cache_clear()
    cpu = torch.device("cpu")
    assert [choice.choose(cpu), choice.choose(cpu)] == ["torch", "torch"]
    reason = "triton needs a CUDA device and the tensors are on cpu (TRITON_INTERPRET=1 interprets, for tests)"
    assert capsys.readouterr().out == f"ace_kernels: torch on cpu, {reason}\n"
    for setting, words in (("fast", "ACE_KERNELS=fast is not one of triton, torch"), ("triton", "cannot run: triton")):
        monkeypatch.setenv("ACE_KERNELS", setting)
        with pytest.raises(KernelChoiceError, match=words):
            choice.choose(cpu)
    monkeypatch.setenv("ACE_KERNELS", "torch")
    assert choice.choose(torch.device("cuda")) == "torch"
    assert capsys.readouterr().out == "ace_kernels: torch on cuda, ACE_KERNELS=torch\n"
    monkeypatch.setenv("RANK", "1")
    choice.settle.cache_clear()
    assert choice.choose(cpu) == "torch" and capsys.readouterr().out == ""
    choice.settle.cache_clear()


@pytest.mark.parametrize(
    "report",
    [
        ("ace_kernels.resources", "train_ata", "train_ata_gathered", "kinetics"),
        ("ace_kernels.temporal_attention_resources", "temporal_8", "temporal_30", "wide_heads"),
    ],
    ids=["similarity", "temporal_attention"],
)
def test_default_shapes_compile_without_spills(report):
    """Ahead of time for sm_80 and sm_90: registers and stack as the machine code records them."""
    done = run_python("-m", *report)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert {row["target"] for row in rows} == {"sm_80", "sm_90"}
    for row in rows:
        assert row["spill_bytes"] == "0" and int(row["registers"]) <= REGISTERS_OF_A_THREAD, row


ASSERTIONS = """
from dataclasses import replace
from triton.backends.compiler import GPUTarget
from ace_kernels import layout, resources, triton_path
triton_path.layout_of = lambda table: replace(layout.layout_of(table), unchecked=True)
for launch in resources.launches_of(resources.Shape("small", 4, 3, 2, 32, gathered=True)):
    ptx = resources.compiled(launch, GPUTarget("cuda", 90, 32)).asm["ptx"]
    print(launch.kernel.__name__, "__assertfail" in ptx)
"""


def test_values_on_the_device_are_asserted_by_the_kernels():
    """Labels, offsets and rows that live on a GPU are checked there: the machine code holds the assertions.

    (Triton's interpreter leaves them out. On a GPU a subprocess of `test_triton.py` sees one fail.)
    """
    done = run_python("-c", ASSERTIONS)
    assert done.returncode == 0, done.stderr
    found = [line.split() for line in done.stdout.splitlines()]
    assert ["means_kernel", "True"] in found and ["logits_kernel", "True"] in found
    assert ["row_gradients_kernel", "False"] in found  # what the forward asserted is not asserted again
