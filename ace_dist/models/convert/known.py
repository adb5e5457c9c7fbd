"""The released weights that ACE and its baselines start from: where they are, under which licence, what they become.

Addresses are those of their authors' pages. A checksum stands here only where the authors or the hub publish one; the
SHA-256 of every other file is recorded at its first download, in `downloads/SHA256SUMS`, and compared from then on.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from ace_dist.config import did_you_mean
from ace_dist.models.convert import video_models
from ace_dist.models.convert.importing import ImportConfig, import_command
from ace_dist.models.convert.layouts import CARD
from ace_dist.models.convert.open_clip import SETTINGS_FILE, TOKENIZER_FILES, import_pair, pair_config
from ace_dist.utils.errors import ConfigError, ModelError
from ace_dist.utils.files import file_sha256, read_checksums, write_checksums
from ace_dist.utils.hub import download, hub_errors

NON_COMMERCIAL = "-NC"  # in the name of a Creative Commons licence
OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TRANSFORMERS_FILES = ("model.safetensors", "pytorch_model.bin")
NEW_HEAD: Mapping[str, Any] = {"embed_dim": 512, "allow": ["head.*"]}  # theirs names the classes of their data set


@dataclass(frozen=True)
class KnownWeights:
    about: str
    kind: str  # of `layouts.KINDS`
    licence: str
    page: str  # of its authors, which says the licence
    makes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # file name -> settings of the import
    model: str | None = None  # a file of configs/model, all of whose files it becomes as well
    text: tuple[str, str] | None = None  # where that file's text tower is others': whose, and which file of theirs
    repository: str | None = None  # OWNER/NAME on the hub
    revision: str | None = None  # its commit; what it holds cannot change
    file: str | None = None  # in the repository; None: as the library stores its models, with what lies beside
    url: str | None = None  # elsewhere; neither repository nor url: only a browser gets it
    suffix: str = ".pth"
    md5_begins: str | None = None  # as its authors write it into the file's name

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Of a whole repository: what may hold its weights, the newer name first."""
        return OPEN_CLIP_FILES if self.kind == "open_clip" else TRANSFORMERS_FILES

    @property
    def address(self) -> str:
        place = f"{self.repository} on the hub, {self.file or self.weight_files[0]}" if self.repository else self.url
        return place or f"a folder that only a browser opens, linked from {self.page}"


KNOWN = {
    "clip_b16": KnownWeights(
        "OpenAI's CLIP ViT-B/16: the text encoder of ACE, and the start of ViFi, BIKE and Text4Vis",
        "hf_clip", "MIT", "https://github.com/openai/CLIP",
        {"clip_text.safetensors": {"tower": "text"}, "clip_image.safetensors": {"tower": "vit"}},
        model="clip_b16", repository="openai/clip-vit-base-patch16",
        revision="57c216476eefef5ab752ec549e440a49ae4ae5f3", file="pytorch_model.bin", suffix=".bin",
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

# Where: `open_clip.pretrained` 3.3.0. Neither commits nor checksums are published there: the hub's SHA-256 of the day,
# and from then on that of the first download, are what a file is compared with.
OPEN_CLIP = "https://github.com/mlfoundations/open_clip"
KNOWN |= {
    "laion_b16": KnownWeights(
        "OpenCLIP ViT-B/16 on LAION-2B", "open_clip", "MIT", OPEN_CLIP, model="laion_b16",
        repository="laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
    ),
    "datacomp_b16": KnownWeights(
        "OpenCLIP ViT-B/16 on DataComp-XL", "open_clip", "MIT", OPEN_CLIP, model="datacomp_b16",
        repository="laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K",
    ),
    "metaclip_b16": KnownWeights(
        "MetaCLIP ViT-B/16 on 2.5 billion pairs of Common Crawl", "open_clip", "CC-BY-NC 4.0",
        "https://github.com/facebookresearch/MetaCLIP", model="metaclip_b16",
        repository="timm/vit_base_patch16_clip_224.metaclip_2pt5b",
    ),
    "siglip_b16": KnownWeights(
        "SigLIP ViT-B/16 on WebLI, English", "open_clip", "Apache-2.0",
        "https://huggingface.co/timm/ViT-B-16-SigLIP", model="siglip_b16", repository="timm/ViT-B-16-SigLIP",
    ),
    "siglip2_b16": KnownWeights(
        "SigLIP 2 ViT-B/16 on WebLI, many languages", "open_clip", "Apache-2.0",
        "https://huggingface.co/timm/ViT-B-16-SigLIP2", model="siglip2_b16", repository="timm/ViT-B-16-SigLIP2",
    ),
    "pe_core_b16": KnownWeights(
        "Perception Encoder Core B/16", "open_clip", "Apache-2.0",
        "https://huggingface.co/timm/PE-Core-B-16", model="pe_core_b16", repository="timm/PE-Core-B-16",
    ),
    "pe_core_l14": KnownWeights(
        "Perception Encoder Core L/14 at 336 pixels", "open_clip", "Apache-2.0",
        "https://huggingface.co/timm/PE-Core-L-14-336", model="pe_core_l14", repository="timm/PE-Core-L-14-336",
    ),
}  # fmt: skip

# Video encoders; the texts of those without their own are CLIP's. A commit of the hub where one is known.
VIDEOMAE = "https://huggingface.co/MCG-NJU/videomae-base"
CLIP_TEXT = ("clip_b16", "clip_text.safetensors")
KNOWN |= {
    "videomae_b16": KnownWeights(
        "VideoMAE ViT-B/16, self-supervised on Kinetics-400; its projection into the text's space starts anew",
        "transformers", "CC-BY-NC 4.0", VIDEOMAE, model="videomae_b16", text=CLIP_TEXT,
        repository="MCG-NJU/videomae-base", revision="dc740ceda42fce44faed2ea03c6d447db72f6af9",
    ),
    "videomae_b16_k400": KnownWeights(
        "VideoMAE ViT-B/16 fine-tuned on Kinetics-400; its projection into the text's space starts anew",
        "transformers", "CC-BY-NC 4.0", f"{VIDEOMAE}-finetuned-kinetics", model="videomae_b16_k400", text=CLIP_TEXT,
        repository="MCG-NJU/videomae-base-finetuned-kinetics",
    ),
    "vjepa2_l16": KnownWeights(
        "V-JEPA 2 ViT-L/16, self-supervised; its pool and projection into the text's space start anew",
        "transformers", "MIT", "https://huggingface.co/facebook/vjepa2-vitl-fpc64-256", model="vjepa2_l16",
        text=CLIP_TEXT, repository="facebook/vjepa2-vitl-fpc64-256",
    ),
    "viclip_b16": KnownWeights(
        "ViCLIP ViT-B/16 on InternVid-10M-FLT: both encoders", "transformers", "none stated",
        "https://huggingface.co/OpenGVLab/ViCLIP-B-16-hf", model="viclip_b16", repository="OpenGVLab/ViCLIP-B-16-hf",
    ),
    "viclip_l14": KnownWeights(
        "ViCLIP ViT-L/14 on InternVid-10M-FLT: both encoders", "transformers", "MIT",
        "https://huggingface.co/OpenGVLab/ViCLIP", model="viclip_l14", repository="OpenGVLab/ViCLIP-L-14-hf",
    ),
    "internvideo2_1b": KnownWeights(
        "InternVideo2 1B, second stage, 4 frames: both encoders", "internvideo2", "Apache-2.0",
        "https://huggingface.co/OpenGVLab/InternVideo2-Stage2_1B-224p-f4", model="internvideo2_1b",
        repository="OpenGVLab/InternVideo2-Stage2_1B-224p-f4", file="InternVideo2-stage2_1b-224p-f4.pt", suffix=".pt",
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
    make_files(settings.name, known, settings)
    if known.text is not None:
        name, file = known.text
        make_files(name, replace(KNOWN[name], makes={file: KNOWN[name].makes[file]}, model=None), settings)


def make_files(name: str, known: KnownWeights, settings: GetSettings) -> None:
    """Say the licence; download unless all files are there, and make those that are not."""
    check_licence(name, known, settings.accept_licence)
    folder = Path(settings.output)
    outputs = {folder / file.format(frames=settings.frames): made for file, made in known.makes.items()}
    pair = [folder / file for file in pair_files(known.model)] if known.model else []
    for path in [path for path in (*outputs, *pair) if path.exists()]:
        print(f"{path} is there and stays; delete it to make it again")
        outputs.pop(path, None)
    if all(path.exists() for path in (*outputs, *pair)):
        return
    downloads = folder / "downloads"
    whole = known.repository and not known.file
    source = obtain_folder(name, known, downloads) if whole else obtain(name, known, downloads)
    if not all(path.exists() for path in pair):
        wanted = ImportConfig(source=str(source), output=str(folder), model=known.model)
        import_pair(replace(wanted, allow_pickle=settings.allow_pickle), recorded_licence(known))
        print(flush=True)
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


def recorded_licence(known: KnownWeights) -> str:
    """A licence as files of weights record it."""
    return known.licence + (": non-commercial" if NON_COMMERCIAL in known.licence else "")


def import_model(settings: ImportConfig) -> None:
    """`ace weights import model=NAME` of a file whose origin nobody knows: it may be the released one."""
    known = KNOWN.get(str(settings.model))
    licence = f"{CARD}; the released {settings.model} is {recorded_licence(known)}" if known else None
    import_pair(settings, licence)


def pair_files(model: str) -> list[str]:
    """The names of the files that a file of configs/model asks for; without a text tower that is of others."""
    config = pair_config(model)
    paths = [config.video.weights]
    if config.text.tower in ("open_clip", "bert"):
        paths += [config.text.weights, config.text.tokenizer]
    return [Path(path).name for path in paths if path is not None]


def obtain_folder(name: str, known: KnownWeights, downloads: Path) -> Path:
    """A model of a library in a folder of its own: weights, settings, and its tokenizer where it has one."""
    folder, model = downloads / name, known.model
    if known.kind == "open_clip":
        beside = [SETTINGS_FILE, *(TOKENIZER_FILES if model and pair_config(model).text.tokenizer else ())]
        optional: tuple[str, ...] = ()
    else:
        beside, optional = [video_models.SETTINGS_FILE], video_models.SEEN_FILES
    newer, older = known.weight_files
    advice = f"or put {', '.join((newer, *beside))} of {known.repository} into {folder}, and give the command again"
    with hub_errors(f"{name} cannot be downloaded", advice):
        for file in beside:
            into_folder(known, folder / file)
        for file in optional:
            into_folder(known, folder / file, may_miss=True)
        if not any((folder / file).is_file() for file in known.weight_files):
            into_folder(known, folder / newer, folder / older)
    for file in known.weight_files:
        if (folder / file).is_file():
            check_file(folder / file, known)
    return folder


def into_folder(known: KnownWeights, path: Path, older: Path | None = None, may_miss: bool = False) -> None:
    """A file of the known repository under its own name, unless it is there; `older` where the hub has none of `path`.

    What the hub's own cache has is linked, not copied.
    """
    from huggingface_hub.errors import EntryNotFoundError

    if path.is_file():
        return
    try:
        found = from_hub(replace(known, file=path.name), path)
    except EntryNotFoundError:
        if may_miss:
            return
        if older is None:
            raise
        return into_folder(known, older)
    if found != path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(found.absolute())


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
        made = [*known.makes, *([f"the files of model={known.model}"] if known.model else [])]
        lines += [f"{'':22} -> {', '.join(made).replace('{frames}', 'T')}"]
    return "\n".join(lines)
