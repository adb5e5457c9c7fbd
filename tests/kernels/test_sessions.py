"""The suite under the interpreter, which needs a process of its own, and the choice of implementation."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ace_kernels import KernelInputError, backend


@pytest.fixture(autouse=True)
def device():
    """These tests set what they test themselves."""


def run_python(*arguments, **settings):
    """A fresh Python: the choice of an implementation and of the interpreter is made once a process."""
    dropped = ("ACE_KERNELS", "TRITON_INTERPRET", "RANK", "PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS")
    environment = {k: v for k, v in os.environ.items() if k not in dropped} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment | settings, check=False
    )


@pytest.mark.parametrize(
    "name",
    [
        f"test_{name}.py"
        for name in (
            "arguments",
            "concept",
            "fused",
            "layout",
            "linear_gelu",
            "residual_norm",
            "short_attention",
            "triton",
        )
    ],
)
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
    backend.cached_choice.cache_clear()
    cpu = torch.device("cpu")
    assert [backend.choose(cpu), backend.choose(cpu)] == ["torch", "torch"]
    reason = "triton needs a CUDA device and the tensors are on cpu (TRITON_INTERPRET=1 interprets, for tests)"
    assert capsys.readouterr().out == f"ace_kernels: torch on cpu, {reason}\n"
    for setting, words in (("fast", "ACE_KERNELS=fast is not one of triton, torch"), ("triton", "cannot run: triton")):
        monkeypatch.setenv("ACE_KERNELS", setting)
        with pytest.raises(KernelInputError, match=words):
            backend.choose(cpu)
    monkeypatch.setenv("ACE_KERNELS", "torch")
    assert backend.choose(torch.device("cuda")) == "torch"
    assert capsys.readouterr().out == "ace_kernels: torch on cuda, ACE_KERNELS=torch\n"
    monkeypatch.setenv("RANK", "1")
    backend.cached_choice.cache_clear()
    assert backend.choose(cpu) == "torch" and capsys.readouterr().out == ""
    backend.cached_choice.cache_clear()


def test_a_kernel_starts_on_the_device_of_its_tensors(monkeypatch):
    """Triton takes the process's current one: a classifier on the second GPU would compute on the first."""
    current, seen = [0], []

    @contextmanager
    def device(index):
        current.append(index)
        yield
        current.pop()

    class Kernel:
        arg_names = ("x",)

        def __getitem__(self, grid):
            return lambda **_: seen.append(current[-1])

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    monkeypatch.setattr(torch.cuda, "device", device)
    launch = backend.Launch(Kernel(), 4, {})
    for index in (1, 0, -1):  # the last one of a CPU, where the interpreter runs
        launch((1, 1, 1), [SimpleNamespace(get_device=lambda index=index: index, data_ptr=lambda: 16)])
    assert seen == [1, 0, 0] and current == [0]
