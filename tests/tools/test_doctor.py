"""`ace doctor`: each shortage that users of containers and small machines meet is named with what to do."""

import shutil
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch

from ace_dist import cli
from ace_dist.tools import doctor

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def disks(monkeypatch):
    """`disks({"/dev/shm": (total, free)})` in GiB; others have a hundred."""

    def set_sizes(sizes):
        def usage(path):
            total, free = sizes.get(str(path), (100, 100))
            return Usage(total * 2**30, 0, free * 2**30)

        monkeypatch.setattr(shutil, "disk_usage", usage)

    set_sizes({})
    return set_sizes


@pytest.fixture
def one_gpu(monkeypatch):
    device = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)


def test_it_says_what_there_is(disks, capsys):
    assert cli.execute(["doctor"]) == 0
    said = capsys.readouterr().out
    for name in ("versions", "host", "gpu", "gpu decoding", "decoders", "disk", "shared memory", "slurm", "extras"):
        assert f" {name} " in said
    assert f"torch {torch.__version__.split('+')[0]}" in said and "decodes h264, hevc" in said


@pytest.mark.parametrize(("sizes", "advice"), [
    ({"/dev/shm": (0.0625, 0.06)}, "--shm-size"), ({"HERE": (100, 1)}, "free at least 2 GiB"),
])  # fmt: skip
def test_what_must_be_mended_fails(disks, sizes, advice, tmp_path, monkeypatch, capsys):
    """As in Docker without an option, and on a full disk."""
    monkeypatch.chdir(tmp_path)
    disks({str(tmp_path) if place == "HERE" else place: size for place, size in sizes.items()})
    assert cli.execute(["doctor"]) == 1
    said = capsys.readouterr().out
    assert said.count("FAILED") == 1 and advice in said


def test_a_gpu_whose_decoder_the_container_hides(one_gpu, monkeypatch):
    """The driver's video library is missing unless the container asks for it."""

    def load(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(doctor.ctypes, "CDLL", load)
    assert doctor.gpu() == ("ok", "gpu", "NVIDIA H100 (80 GiB)", "")
    finding = doctor.gpu_decoding()
    assert finding.state == "slow" and "NVIDIA_DRIVER_CAPABILITIES" in finding.advice


def test_missing_packages_are_named_with_their_extra(monkeypatch):
    gone = {"gradio", "nvidia.dali"}  # `nvidia` itself is there with torch
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None if name in gone else object())
    finding = doctor.extras()
    assert finding.said == "[gpu] lacks nvidia; [explore] lacks gradio"
    assert "pip install 'ace-dist[gpu,explore]'" in finding.advice
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/sbatch")
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert "submitit is not" in doctor.slurm().said
