"""What this machine has, what is missing, and what would be slow and why; `preflight` checks a run's own settings."""

import ctypes
import importlib.util
import platform
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from ace_dist import __version__
from ace_dist.utils.cores import free_memory_gib, host_cores
from ace_dist.utils.extras import EXTRAS, installing
from ace_dist.utils.files import LEAST_FREE_GIB

LEAST_SHARED_GIB = 1.0  # Docker gives 64 MiB, with which NCCL and worker processes end
CODECS = ("h264", "hevc", "vp9", "av1", "mjpeg", "mpeg4", "prores")
PACKAGES = ("torch", "transformers", "timm", "av", "deepspeed", "triton", "nvidia-dali-cuda130")


class Finding(NamedTuple):
    """What one check saw: `ok`, `slow` (it works, and why it takes long), or `FAILED`."""

    state: str
    name: str
    said: str
    advice: str = ""


def doctor() -> tuple[str, bool]:
    """Every check as a table, and whether none failed."""
    checks: tuple[Callable[[], Finding], ...] = (
        versions, host, gpu, gpu_decoding, decoders, disk, shared_memory, slurm, extras,
    )  # fmt: skip
    findings = [check() for check in checks]
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:7} {finding.name:14} {finding.said}")
        lines += [f"{'':7} {'':14} -> {finding.advice}"] if finding.advice else []
    return "\n".join(lines), all(finding.state != "FAILED" for finding in findings)


def versions() -> Finding:
    found = {"ace-dist": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return Finding("ok", "versions", ", ".join(f"{name} {number}" for name, number in found.items()))


def host() -> Finding:
    cores = host_cores()
    said = (
        f"{cores} core(s), {free_memory_gib():.1f} GiB of memory free, {platform.machine()}, Linux {platform.release()}"
    )
    if cores < 4:
        return Finding("slow", "host", said, "cutting, encoding and decoding clips take one core a worker")
    return Finding("ok", "host", said)


def gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        advice = (
            "the paper's encoders want one; `ace estimate experiment=demo device=cpu` says how long a run takes without"
        )
        return Finding("slow", "gpu", f"none ({built})", advice)
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    said = ", ".join(f"{device.name} ({device.total_memory / 2**30:.0f} GiB)" for device in devices)
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        return Finding(
            "slow", "gpu", said, "it has no bf16: set training.precision=fp32, which takes more memory and time"
        )
    return Finding("ok", "gpu", said)


def gpu_decoding() -> Finding:
    """NVDEC, through the driver's library, and DALI, which uses it."""
    import torch

    if not torch.cuda.is_available():
        return Finding("ok", "gpu decoding", "no GPU; loader.backend=pyav decodes on the CPU")
    if not is_installed("nvidia"):
        return Finding("slow", "gpu decoding", "DALI is not installed, so the CPU decodes", installing("nvidia"))
    try:
        ctypes.CDLL("libnvcuvid.so.1")
    except OSError:
        advice = "in a container set NVIDIA_DRIVER_CAPABILITIES=compute,utility,video; MJPEG shards need no NVDEC"
        return Finding("slow", "gpu decoding", "DALI is there, NVDEC is not (no libnvcuvid.so.1)", advice)
    return Finding("ok", "gpu decoding", "NVDEC and DALI; loader.backend=auto times DALI and PyAV and takes the faster")


def decoders() -> Finding:
    import av

    missing = [name for name in CODECS if name not in av.codecs_available]
    said = f"PyAV {av.__version__} decodes {', '.join(name for name in CODECS if name not in missing)}"
    if missing:
        return Finding("slow", "decoders", f"{said}; not {', '.join(missing)}", "videos in these are refused by name")
    return Finding("ok", "decoders", said)


def disk() -> Finding:
    """Where runs and temporary files go."""
    places = {"here": Path.cwd(), "temporary files": Path(tempfile.gettempdir())}
    free = {name: shutil.disk_usage(path).free / 2**30 for name, path in places.items()}
    said = ", ".join(f"{name} {places[name]}: {gib:.1f} GiB free" for name, gib in free.items())
    if min(free.values()) < LEAST_FREE_GIB:
        advice = f"free at least {LEAST_FREE_GIB:g} GiB, or set run=DIR and TMPDIR to another disk"
        return Finding("FAILED", "disk", said, advice)
    return Finding("ok", "disk", said)


def shared_memory() -> Finding:
    place = Path("/dev/shm")  # the kernel's own place for it  # nosec B108
    if not place.is_dir():
        return Finding(
            "FAILED", "shared memory", f"no {place}", "mount a tmpfs there: ranks and workers share memory by it"
        )
    size = shutil.disk_usage(place).total / 2**30
    if size < LEAST_SHARED_GIB:
        return Finding(
            "FAILED", "shared memory", f"{place} has {size:.2f} GiB", "start the container with --shm-size=8g"
        )
    return Finding("ok", "shared memory", f"{place} has {size:.1f} GiB")


def slurm() -> Finding:
    if shutil.which("sbatch") is None:
        return Finding("ok", "slurm", "none here; cluster=local runs jobs on this machine")
    if not is_installed("submitit"):
        return Finding(
            "slow", "slurm", "sbatch is here, submitit is not: no job can be submitted", installing("submitit")
        )
    return Finding(
        "ok", "slurm", f"{shutil.which('sbatch')}; `ace submit cluster=slurm dry_run=true` shows the batch file"
    )


def extras() -> Finding:
    """Packages that are not installed, by the extra that brings them; none of them is needed to classify."""
    missing: dict[str, list[str]] = {}
    for module, extra in EXTRAS.items():
        if not is_installed(module):
            missing.setdefault(extra, []).append(module)
    if not missing:
        return Finding("ok", "extras", "all are installed")
    said = "; ".join(f"[{extra}] lacks {', '.join(modules)}" for extra, modules in missing.items())
    return Finding("ok", "extras", said, f"pip install 'ace-dist[{','.join(missing)}]' if you need them")


def is_installed(module: str) -> bool:
    """`nvidia` is DALI's: CUDA's own packages, which torch brings, share the name."""
    if importlib.util.find_spec(module) is None:
        return False
    return module != "nvidia" or importlib.util.find_spec("nvidia.dali") is not None
