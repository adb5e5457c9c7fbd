"""Checks before a long job: do the ranks meet, agree on versions, see the disk and the shards, and decode.

Every check looks at this rank alone and returns what it saw; one gather then makes a table out of all ranks' words.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from ace_dist.config import Config, resolve_path
from ace_dist.data.loader import build_loader
from ace_dist.data.sampling import TrainPlan
from ace_dist.data.shards import MANIFEST, ShardFiles, ShardSet
from ace_dist.train.run_folder import environment
from ace_dist.utils.cores import free_memory_gib, host_cores
from ace_dist.utils.distributed import Ranks
from ace_dist.utils.files import LEAST_FREE_GIB

ALL_REDUCE_MIB = 16
DECODED_CLIPS = 3  # of each rank
SHARED_DISK_WAIT_S = 20.0  # a network file system shows another node's file after its cache has expired


@dataclass(frozen=True)
class Finding:
    """What one rank saw. `key` must be the same on all ranks when it is not `None`."""

    check: str
    failed: bool
    said: str
    remedy: str = ""
    key: str | None = None


def preflight(config: Config, ranks: Ranks) -> list[list[Finding]]:
    """Every check on every rank: for each check the findings in rank order. Collective.

    An error is a finding too, so that the other ranks are not left waiting.
    """
    checks: Sequence[Callable[[Config, Ranks], Finding]] = (host, versions, code, all_reduce, disk, shards, decoder)
    findings = []
    for check in checks:
        try:
            finding = check(config, ranks)
        except Exception as error:
            finding = Finding(check.__name__, True, f"{type(error).__name__}: {' '.join(str(error).split())}")
        findings.append(ranks.gather(finding))
    return findings


def host(config: Config, ranks: Ranks) -> Finding:
    """Cores, memory and the device of this rank."""
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    name = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu"
    said = f"{host_cores()} core(s) for {local} rank(s) here, {free_memory_gib():.1f} GiB of memory free, {name}"
    if ranks.device.type == "cuda" and torch.cuda.device_count() not in (1, local):
        remedy = f"{torch.cuda.device_count()} GPUs for {local} ranks: set cluster.tasks_per_node=cluster.gpus_per_node"
        return Finding("host", True, said, remedy, name)
    return Finding("host", False, said, "every rank needs the same device: cluster.constraint=...", name)


def versions(config: Config, ranks: Ranks) -> Finding:
    """The packages that decide what is computed."""
    facts = environment()
    packages = {"python": facts["python"], **facts["versions"]}
    said = ", ".join(f"{name} {version}" for name, version in packages.items())
    return Finding("versions", False, said, "use one environment for all nodes: cluster.python or cluster.setup", said)


def code(config: Config, ranks: Ranks) -> Finding:
    """The project's own source files, as a digest, and the commit."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    state = environment()["git"]
    commit = f"commit {state['commit'][:8]}{'+' * bool(state['modified'])}" if state["commit"] else "no checkout"
    key = digest.hexdigest()[:12]
    return Finding("code", False, f"{commit}, files {key}", "all nodes must import the same checkout", key)


def all_reduce(config: Config, ranks: Ranks) -> Finding:
    """A sum over all ranks is right; how fast it is."""
    values = torch.full((ALL_REDUCE_MIB * 2**18,), float(ranks.rank + 1), device=ranks.device)
    dist.all_reduce(values)  # opens the connections
    right = bool((values == ranks.world * (ranks.world + 1) / 2).all())
    started = time.perf_counter()
    dist.all_reduce(values)
    values[0].item()  # waits for the device
    taken_s = time.perf_counter() - started
    gbit_s = 2 * (ranks.world - 1) / ranks.world * ALL_REDUCE_MIB * 2**20 * 8 / taken_s / 1e9
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    said = f"{dist.get_backend()} met at {where}, {ALL_REDUCE_MIB} MiB in {1e3 * taken_s:.0f} ms"
    said += f" ({gbit_s:.1f} Gbit/s on the wire)" if ranks.world > 1 else ""
    return Finding("all_reduce", not right, said if right else f"{said}: the sum is wrong", "check the network")


def disk(config: Config, ranks: Ranks) -> Finding:
    """The folder above the run's is writeable, has room, and is the same for all ranks."""
    folder = Path(config.run).absolute().parent
    token = folder / f".preflight-{os.environ['MASTER_PORT']}"
    remedy = f"run={config.run} must lie on a disk that all nodes share and may write"
    problem = ""
    try:
        if ranks.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            token.touch()
    except OSError as error:
        problem = str(error)
    ranks.barrier()
    deadline = time.monotonic() + SHARED_DISK_WAIT_S
    while not problem and not token.is_file():
        if time.monotonic() > deadline:
            problem = f"{token}, which rank 0 has written, is not here"
        time.sleep(0.1)
    ranks.barrier()
    if ranks.is_first:
        token.unlink(missing_ok=True)
    if problem:
        return Finding("disk", True, problem, remedy)
    free_gib = shutil.disk_usage(folder).free / 2**30
    said = f"{folder}: shared, {free_gib:.1f} GiB free"
    return Finding("disk", free_gib < LEAST_FREE_GIB, said, f"free at least {LEAST_FREE_GIB:g} GiB, or set run=DIR")


def shards(config: Config, ranks: Ranks) -> Finding:
    """All ranks see one manifest and whole shards; each reads the last clip of its share of them."""
    whole = ShardSet.load(resolve_path(config.dataset.shards))
    manifest = hashlib.sha256((whole.folder / MANIFEST).read_bytes()).hexdigest()[:12]
    last = {record.shard: record for record in whole.records}
    mine = list(last.values())[ranks.rank :: ranks.world]
    files = ShardFiles(whole.folder)
    started = time.perf_counter()
    size = sum(len(files.read(record)) for record in mine)
    taken_ms = 1e3 * (time.perf_counter() - started) / max(1, len(mine))
    files.close()
    said = f"{len(whole.records)} clips in {len(last)} shards of {whole.folder}, manifest {manifest}"
    said += f"; {len(mine)} shard(s) read here, {size / 2**10:.0f} KiB, {taken_ms:.1f} ms a clip" if mine else ""
    return Finding("shards", False, said, "dataset.shards must be the same folder on all nodes", manifest)


def decoder(config: Config, ranks: Ranks) -> Finding:
    """The run's own loader decodes training clips to the right shape and to numbers."""
    records, clip = ShardSet.load(resolve_path(config.dataset.shards)).split("train"), config.dataset.clip
    labels = [0] * len(records)
    plan = TrainPlan(records, labels, clip, config.loader, ranks.world, config.seed, ranks.rank, ranks.world)
    loader = build_loader(config, ranks.device)
    started = time.perf_counter()
    videos = [batch.video for batch in loader.stream(plan.requests(step) for step in range(DECODED_CLIPS))]
    taken_ms = 1e3 * (time.perf_counter() - started) / DECODED_CLIPS
    loader.close()
    expected = (1, clip.frames, 3, config.loader.crop, config.loader.crop)
    wrong = [tuple(video.shape) for video in videos if tuple(video.shape) != expected or not video.isfinite().all()]
    said = f"{loader.backend} on {ranks.device}: {DECODED_CLIPS} clips of {expected[1:]}, {taken_ms:.0f} ms each"
    remedy = "loader.backend=pyav, or build the shards in a codec that this device decodes"
    return Finding("decoder", bool(wrong), f"{said}; wrong: {wrong}" if wrong else said, remedy, loader.backend)


def table(findings: Sequence[Sequence[Finding]]) -> tuple[str, bool]:
    """The table for the console, and whether everything is as it must be.

    A check is `ok` when no rank failed and all ranks have the same key; else each odd rank is named with the remedy.
    """
    lines, good = [], True
    for column in findings:
        reference = column[0]
        odd = [
            (rank, finding)
            for rank, finding in enumerate(column)
            if finding.failed or (not reference.failed and finding.key != reference.key)
        ]
        good = good and not odd
        everyone = "" if len(column) == 1 else f"all {len(column)} ranks; rank 0: "
        if not odd:
            lines.append(f"ok      {reference.check:<11} {everyone}{reference.said}")
            continue
        if not reference.failed:
            lines.append(f"        {reference.check:<11} rank 0: {reference.said}")
        for rank, finding in odd:
            lines.append(f"FAILED  {finding.check:<11} rank {rank}: {finding.said}")
        remedies = dict.fromkeys(finding.remedy for _, finding in odd if finding.remedy)
        lines += [f"        {'':<11} -> {remedy}" for remedy in remedies]
    return "\n".join(lines), good
