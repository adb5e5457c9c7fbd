"""The released weights that ACE and its baselines start from: where they are, under which licence, what they become.

Addresses are those of their authors' pages. A checksum stands here only where the authors or the hub publish one; the
SHA-256 of every other file is recorded at its first download, in `downloads/SHA256SUMS`, and compared from then on.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from ace_dist.config import did_you_mean
from ace_dist.models.convert.importing import ImportConfig, import_command
from ace_dist.utils.errors import ConfigError, ModelError
from ace_dist.utils.files import file_sha256, read_checksums, write_checksums
from ace_dist.utils.hub import download, hub_errors

NON_COMMERCIAL = "-NC"  # in the name of a Creative Commons licence
NEW_HEAD: Mapping[str, Any] = {"embed_dim": 512, "allow": ["head.*"]}  # theirs names the classes of their data set


@dataclass(frozen=True)
class KnownWeights:
    about: str
    kind: str  # of `layouts.KINDS`
    licence: str
    page: str  # of its authors, which says the licence
    makes: Mapping[str, Mapping[str, Any]]  # file name -> settings of the import
    repository: str | None = None  # OWNER/NAME on the hub
    revision: str | None = None  # its commit; what it holds cannot change
    file: str | None = None  # in the repository
    url: str | None = None  # elsewhere; neither repository nor url: only a browser gets it
    suffix: str = ".pth"
    md5_begins: str | None = None  # as its authors write it into the file's name

    @property
    def address(self) -> str:
        place = f"{self.repository} on the hub, {self.file}" if self.repository else self.url
        return place or f"a folder that only a browser opens, linked from {self.page}"


KNOWN = {
    "clip_b16": KnownWeights(
        "OpenAI's CLIP ViT-B/16: the text encoder of ACE, and the start of ViFi, BIKE and Text4Vis",
        "hf_clip", "MIT", "https://github.com/openai/CLIP",
        {"clip_text.safetensors": {"tower": "text"}, "clip_image.safetensors": {"tower": "vit"}},
        repository="openai/clip-vit-base-patch16", revision="57c216476eefef5ab752ec549e440a49ae4ae5f3",
        file="pytorch_model.bin", suffix=".bin",
    ),
    "procedurevrl": KnownWeights(
        "ProcedureVRL's second stage on HowTo100M: the video encoder that the paper starts from",
        "procedurevrl", "CC-BY-NC-SA 3.0", "https://github.com/facebookresearch/ProcedureVRL",
        {"timesformer.safetensors": {"tower": "timesformer"}}, suffix=".pyth",
    ),
    "timesformer_howto100m": KnownWeights(
        "TimeSformer on HowTo100M's tasks, 8 frames; its projection into the text's space starts anew",
        "timesformer", "CC-BY-NC 4.0", "https://github.com/facebookresearch/TimeSformer",
        {"timesformer_howto100m.safetensors": {"tower": "timesformer", **NEW_HEAD}},
        url="https://www.dropbox.com/s/9v8hcm88b9tc6ff/TimeSformer_divST_8x32_224_HowTo100M.pyth?dl=1", suffix=".pyth",
    ),
    "timesformer_k400": KnownWeights(
        "TimeSformer on Kinetics-400, 8 frames; its projection into the text's space starts anew",
        "hf_timesformer", "CC-BY-NC 4.0", "https://huggingface.co/facebook/timesformer-base-finetuned-k400",
        {"timesformer_k400.safetensors": {"tower": "timesformer", **NEW_HEAD}},
        repository="facebook/timesformer-base-finetuned-k400", revision="8aaf40ea7d3d282dcb0a5dea01a198320d15d6c0",
        file="pytorch_model.bin", suffix=".bin",
    ),
    "lavila": KnownWeights(
        "LaViLa TSF-B on Ego4D, narrator and rephraser, epoch 5: both encoders",
        "lavila", "MIT", "https://github.com/facebookresearch/LaViLa",
        {"lavila_video.safetensors": {"tower": "spacetime"}, "lavila_text.safetensors": {"tower": "text"}},
        url="https://dl.fbaipublicfiles.com/lavila/checkpoints/dual_encoders/ego4d/"
        "clip_openai_timesformer_base.narrator_rephraser.ep_0005.md5sum_d73a9c.pth",
        md5_begins="d73a9c",
    ),
    "text4vis_k400": KnownWeights(
        "Text4Vis ViT-B/16 on Kinetics-400, 8 frames, with its transformer over frames",
        "text4vis", "MIT", "https://github.com/whwu95/Text4Vis",
        {"text4vis_k400_{frames}.safetensors": {"tower": "vit"}},
        url="https://github.com/whwu95/Text4Vis/releases/download/v1/k400-vitb-16-f8.pt", suffix=".pt",
    ),
    "bike_k400": KnownWeights(
        "BIKE ViT-B/16 on Kinetics-400, 8 frames, with its transformer over frames",
        "text4vis", "MIT", "https://github.com/whwu95/BIKE",
        {"bike_k400_{frames}.safetensors": {"tower": "vit"}},
        url="https://github.com/whwu95/BIKE/releases/download/v1.0/k400-vit-b-16-f8.pt", suffix=".pt",
    ),
}  # fmt: skip


@dataclass
class GetSettings:
    name: str = MISSING  # clip_b16, procedurevrl, lavila, ...; may stand alone: `ace weights get clip_b16`
    output: str = "weights"  # the folder where the configurations look for weights
    accept_licence: bool = False  # of weights whose licence restricts what you may do with them
    allow_pickle: bool = False  # read a file that is more than tensors; it can run code
    frames: int | None = None  # of text4vis_k400 and bike_k400: the dataset.clip.frames of the run


def get_command(settings: GetSettings) -> None:
    """Download known weights, unless they are there, and bring them under our names in `output`."""
    if settings.name not in KNOWN:
        raise ConfigError(
            f"name={settings.name} is not one of {', '.join(KNOWN)}{did_you_mean(settings.name, KNOWN)}; other files "
            f"come in by `ace weights import source=FILE output=FILE.safetensors`"
        )
    known = KNOWN[settings.name]
    by_frames = any("{frames}" in name for name in known.makes)
    if by_frames != (settings.frames is not None):
        raise ConfigError(
            f"{settings.name} has positions for frames: say frames=T, the dataset.clip.frames of your run" if by_frames
            else f"frames={settings.frames} is of text4vis_k400 and bike_k400 alone; {settings.name} takes none"
        )  # fmt: skip
    check_licence(settings.name, known, settings.accept_licence)
    folder = Path(settings.output)
    outputs = {folder / name.format(frames=settings.frames): made for name, made in known.makes.items()}
    for path in [path for path in outputs if path.exists()]:
        print(f"{path} is there and stays; delete it to make it again")
        del outputs[path]
    if not outputs:
        return
    source = obtain(settings.name, known, folder / "downloads")
    for path, made in outputs.items():
        wanted = ImportConfig(source=str(source), output=str(path), kind=known.kind, frames=settings.frames, **made)
        import_command(replace(wanted, allow_pickle=settings.allow_pickle))
        print(flush=True)
    print(f"{source} is no longer needed; it spares the download when these files are made again")


def check_licence(name: str, known: KnownWeights, accepted: bool) -> None:
    """Say the licence. Raises `ConfigError` when it restricts what may be done and nobody has accepted it."""
    restricts = NON_COMMERCIAL in known.licence
    print(f"{name}: {known.about}\nfrom {known.address}\nlicence: {known.licence} ({known.page})", flush=True)
    if restricts and not accepted:
        raise ConfigError(
            f"{name} is {known.licence}: no commercial use, nor of what you train from it; read {known.page}, and add "
            f"accept_licence=true if you keep to it"
        )


def obtain(name: str, known: KnownWeights, folder: Path) -> Path:
    """The released file: out of `folder`, the hub's cache or the network. Raises `UserError` when it is another one."""
    file = folder / f"{name}{known.suffix}"
    by_hand = f"or fetch it elsewhere ({known.address}), save it as {file}, and give the command again"
    if not file.is_file():
        with hub_errors(f"{name} cannot be downloaded", by_hand):
            if known.repository:
                file = from_hub(known, file)
            elif known.url:
                download(known.url, file)
            else:
                raise ModelError(
                    f"{name} is in {known.address}: download it there, save it as {file}, and give the command again"
                )
    if file.parent == folder:
        check_file(file, known)
    return file


def from_hub(known: KnownWeights, file: Path) -> Path:
    """A file of the hub, out of its own cache when it is there; else `file`, checked by the hub's SHA-256 of it."""
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url, try_to_load_from_cache

    assert known.repository and known.file
    cached = try_to_load_from_cache(known.repository, known.file, revision=known.revision)
    if isinstance(cached, str):
        return Path(cached)
    url = hf_hub_url(known.repository, known.file, revision=known.revision)
    headers = {"authorization": f"Bearer {token}"} if (token := get_token()) else {}
    facts = get_hf_file_metadata(url, headers=headers)
    download(url, file, facts.size, headers)
    if facts.etag and len(facts.etag) == 64 and file_sha256(file) != facts.etag:  # of large files it is the SHA-256
        file.unlink()
        raise ModelError(f"{file} was damaged on its way, by the hub's SHA-256, and is deleted; give the command again")
    return file


def check_file(file: Path, known: KnownWeights) -> None:
    """Compare with what its authors publish of it, and with its first download. Raises `ModelError`."""
    with file.open("rb") as opened:
        first = opened.read(1)
        opened.seek(0)
        md5 = hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if first in (b"<", b""):
        file.unlink()
        raise ModelError(f"{known.address} gave a web page and no weights: save the file as {file} with a browser")
    if known.md5_begins and not md5.startswith(known.md5_begins):
        raise ModelError(
            f"{file} is damaged or another file: its MD5 begins with {md5[:6]} and its authors' with "
            f"{known.md5_begins}; delete it, and give the command again"
        )
    digest, recorded = file_sha256(file), read_checksums(file.parent)
    if recorded.setdefault(file.name, digest) != digest:
        raise ModelError(
            f"{file} is not the file of its first download, by its SHA-256 in {file.parent / 'SHA256SUMS'}; delete it "
            f"to download it again, or that line if the new file is meant"
        )
    write_checksums(file.parent, recorded)


def known_table() -> str:
    """A line of what, where and licence for each of the known weights."""
    lines = []
    for name, known in KNOWN.items():
        lines += [f"{name:22} {known.licence:16} {known.about}", f"{'':22} {known.address}"]
        lines += [f"{'':22} -> {', '.join(known.makes).replace('{frames}', 'T')}"]
    return "\n".join(lines)
