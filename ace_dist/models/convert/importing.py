"""Brings weight files of other projects under our names: safe reading, a strict check against the network, a report."""

import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ace_dist.config import TextConfig, VideoConfig
from ace_dist.models.convert.layouts import KINDS, convert
from ace_dist.models.dual_encoder import build_text_tower, build_video_tower
from ace_dist.models.text_clip import ClipTextTower
from ace_dist.models.video import resize_positions, resize_times
from ace_dist.models.weights import NOT_RECORDED, LoadReport, load_safetensors, read_licence, save_safetensors
from ace_dist.utils.errors import ConfigError, ModelError
from ace_dist.utils.files import file_sha256
from ace_dist.utils.reading import read_object

CONTAINERS = ("model_state", "state_dict", "model_state_dict", "model", "module")  # where a checkpoint has its weights
INDEX = "model.safetensors.index.json"  # of weights in several files
FOLDER_FILES = (  # of a Hugging Face folder
    "open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", INDEX, "pytorch_model.bin",
)  # fmt: skip
HEAD_BESIDE = (
    "fusion_model_state_dict"  # BIKE's and Text4Vis' checkpoints keep what is over the frames beside the encoder
)
QUICK_GELU = (
    "openai_clip",
    "lavila",
    "text4vis",
)  # kinds whose CLIP towers have it; others' tensors do not tell it from GELU
CLASSIFIER_HEADS = ("timesformer", "hf_timesformer", "timm_vit")  # kinds whose `head` names classes of their data set


@dataclass
class ImportConfig:
    """Settings of `ace weights`: a weight file and what it is to become. `None`: as the file has it."""

    source: str = ""  # a weight file, or a Hugging Face folder
    output: str = ""  # a safetensors file; with model= a folder, `weights` unless said otherwise
    model: str | None = None  # a file of configs/model, or of yours: makes all files that it names, of both towers
    kind: str | None = None  # one of KINDS; found from the keys when left out
    tower: str | None = None  # timesformer, vit, spacetime or text
    frames: int | None = None  # length of the time embedding; of text4vis: the first so many of its 77 frame positions
    image_size: int | None = None  # pixels
    embed_dim: int | None = None  # rows of the head, the width of the shared space
    allow: list[str] = field(default_factory=list)  # keys, or patterns as head.*, that may be missing, left over, other
    allow_pickle: bool = False  # read files that are more than tensors; they can run code


@dataclass
class ImportReport(LoadReport):
    """What became of every key. A key that `allow` covers is in `started` or `skipped` and in no list of faults."""

    kind: str = ""
    tower: str = ""
    settings: dict[str, int | float | bool] = field(default_factory=dict)  # of the tower; heads are in no tensor
    derived: dict[str, str] = field(default_factory=dict)  # our key -> how it was computed
    skipped: list[str] = field(default_factory=list)  # unexpected, allowed: left out
    assumed: str = ""  # what neither the tensors nor a file beside them say

    def table(self) -> str:
        """One line a list, the keys grouped by their pattern."""
        derived = [f"{pattern}: {how}" for how in dict.fromkeys(self.derived.values())
                   for pattern in patterns(key for key, made in self.derived.items() if made == how)]  # fmt: skip
        rows = {
            "missing": self.missing, "unexpected": self.unexpected, "mismatched": self.mismatched,
            "resized": self.resized, "computed": derived, "started anew": self.started, "left out": self.skipped,
            "other parts": self.ignored,
        }  # fmt: skip
        lines = [f"{self.path}: {self.kind} -> {self.tower}, {self.loaded} tensors taken"]
        lines += [f"  {name:12} {len(keys):4}  {', '.join(patterns(keys))}" for name, keys in rows.items() if keys]
        lines += [f"  assumed      {self.assumed}"] if self.assumed else []
        return "\n".join(lines)


def import_command(config: ImportConfig) -> None:
    """`ace weights`: writes when nothing is missing, left over or of another shape."""
    if not (config.source and config.output.endswith(".safetensors")):
        raise ConfigError("give source=FILE (a weight file or Hugging Face folder) and output=FILE.safetensors")
    state, report = import_weights(config)
    print(report.table())
    if not report.complete:
        raise ModelError(
            f"{config.source} does not fit: see missing, unexpected and mismatched above; nothing was written. If that "
            f"is intended, list the keys, for example allow='[head.*]'"
        )
    save_imported(state, report, Path(config.output))
    section, tower = ("text", {}) if report.tower == "text" else ("video", {"tower": report.tower})
    settings = {**tower, **report.settings, "weights": config.output}
    texts = {key: str(value).lower() if isinstance(value, bool) else value for key, value in settings.items()}
    print(f"licence of the released files: {released_licence(report)}; keep to that of yours")
    print(f"heads are in no tensor: model.{section}.heads is width / 64 in CLIP, ViT-B and TimeSformer")
    print("use it with:", *(f"model.{section}.{key}={value}" for key, value in texts.items()))


def import_weights(config: ImportConfig) -> tuple[dict[str, Tensor], ImportReport]:
    """Read a file of another project and bring it under our names, checked against our network key by key.

    Raises `ModelError` when the file cannot be read safely, is of no known kind, or cannot become `config.tower`. A
    key that is missing, left over or of another shape is in the report, which the caller must find `complete`.
    """
    for name in ("frames", "image_size", "embed_dim"):
        if (value := getattr(config, name)) is not None and value < 1:
            raise ModelError(f"{name}={value} must be at least 1")

    # What the file is, and what it can become.
    source = Path(config.source).expanduser()
    raw = read_source(source, config.allow_pickle)
    kind = choose_kind(source, raw, config.kind)
    tower = config.tower or next(iter(KINDS[kind].rules))
    if tower not in KINDS[kind].rules:
        raise ModelError(
            f"{source} ({kind}) cannot become tower={tower}; it can become {' or '.join(KINDS[kind].rules)}"
        )

    # Its tensors under our names, and the network that their shapes describe.
    converted = convert(raw, kind, tower)
    state = converted.state
    cut = cut_positions(state, source, config.frames)
    if kind in CLASSIFIER_HEADS and config.embed_dim is None and "head.weight" in state:
        rows = len(state["head.weight"])
        raise ModelError(
            f"{source}: its head has {rows} rows. If it projects into the text's space, say embed_dim={rows}; if it "
            f"names classes, as TimeSformer's own do, say embed_dim=512 allow='[head.*]' to start a new projection"
        )
    settings = measure(state, source, tower, config)
    report = ImportReport(
        source, ignored=converted.dropped, kind=kind, tower=tower, settings=settings, derived=converted.derived
    )
    report.resized += cut
    if kind not in QUICK_GELU and (tower == "text" or settings.get("clip_style")):
        report.assumed = check_activation(source)
    for key, size in (("time_embed", config.frames), ("pos_embed", config.image_size)):
        if size and key in state:
            old = state[key]
            if key == "time_embed":
                state[key] = resize_times(old, size)
            else:
                state[key] = resize_positions(old, (size // int(settings["patch"])) ** 2)
            if state[key].shape != old.shape:
                report.resized.append(f"{key} {list(old.shape)} to {list(state[key].shape)}")
    return fit_network(state, converted.unexpected, report, config.allow), report


def cut_positions(state: dict[str, Tensor], source: Path, frames: int | None) -> list[str]:
    """Keep the frame positions of `frames` frames: a clip of T takes the first T (Text4Vis, BIKE). Says what was cut.

    Raises `ModelError` when `frames` does not say how many, or more than there are.
    """
    key = "temporal.positions"
    if key not in state:
        return []
    rows = state[key].shape[1]
    if frames is None or frames > rows:
        raise ModelError(
            f"{source} has positions for {rows} frames and frames={frames}: say frames=T, the dataset.clip.frames of "
            f"the run, whose clips take the first T of them"
        )
    state[key] = state[key][:, :frames].clone()
    return [f"{key} {rows} to {frames}, the first ones"] if frames < rows else []


def check_activation(source: Path) -> str:
    """Whether a CLIP was trained with QuickGELU, which our CLIP towers have; no tensor tells it.

    Returns what is assumed when no settings file beside the weights says so. Raises `ModelError` when one says GELU.
    """
    folder = source if source.is_dir() else source.parent
    assumed = (
        "QuickGELU, as in OpenAI's weights; open_clip's models without quickgelu in their name have GELU: do not use"
    )
    for path in (folder / "config.json", folder / "open_clip_config.json"):
        advice = f"; it should say how {source} was made"
        about = read_object(path, ModelError, advice) if path.is_file() else {}
        if "model_cfg" in about:  # of open_clip, where GELU is the default
            quick = bool(about["model_cfg"].get("quick_gelu", False))
        elif str(about.get("model_type", "")).startswith("clip"):  # of transformers, where QuickGELU is
            towers = [about, about.get("text_config") or {}, about.get("vision_config") or {}]
            quick = all(part.get("hidden_act", "quick_gelu") == "quick_gelu" for part in towers)
        else:
            continue
        if not quick:
            raise ModelError(
                f"{source} was trained with GELU ({path.name}); our CLIP towers have QuickGELU, as OpenAI's"
            )
        assumed = ""
    return assumed


def choose_kind(source: Path, raw: Mapping[str, Tensor], given: str | None) -> str:
    """The kind that was given, or that the keys tell. Raises `ModelError` when there is none or they disagree."""
    if given is not None and given not in KINDS:
        raise ModelError(f"kind={given} is not one of {', '.join(KINDS)}")
    kind = next((name for name, kind in KINDS.items() if any(re.fullmatch(kind.mark, key) for key in raw)), None)
    if kind is None:
        raise ModelError(
            f"{source} is none of {', '.join(KINDS)}: its {len(raw)} keys begin with "
            f"{', '.join(list(raw)[:4]) or 'nothing'}"
        )
    related = ({"openai_clip", "open_clip"}, {"timesformer", "procedurevrl"})  # the same names
    if given is None or given == kind or any({given, kind} <= family for family in related):
        return given or kind
    raise ModelError(f"{source} looks like {kind}, not kind={given}; leave kind out, or set kind={kind}")


def fit_network(
    state: Mapping[str, Tensor], unknown: Sequence[str], report: ImportReport, allow: Sequence[str]
) -> dict[str, Tensor]:
    """The network's state dict out of `state`, every difference in the report; `allow` covers keys that may differ."""

    def is_allowed(key: str) -> bool:
        return any(fnmatchcase(key, pattern) for pattern in allow)

    settings: dict[str, Any] = {**report.settings, "heads": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if report.tower == "text":
            network = ClipTextTower(TextConfig(**settings)).state_dict()
        else:
            network = build_video_tower(VideoConfig(**settings, tower=report.tower, trained_blocks=0)).state_dict()
    result = {}
    for key, own in network.items():
        if key in state and state[key].shape == own.shape:
            result[key] = state[key]
            continue
        fault = f"{key} {list(state[key].shape)} for {list(own.shape)}" if key in state else key
        if is_allowed(key):
            result[key] = own
            report.started.append(fault)
        else:
            (report.mismatched if key in state else report.missing).append(fault)
    report.loaded = len(result) - len(report.started) - len(set(report.derived) & set(result))
    for key in [*unknown, *(key for key in state if key not in network)]:
        (report.skipped if is_allowed(key) else report.unexpected).append(key)
    return result


def check_tower(config: Any, state: Mapping[str, Tensor], source: Path, is_text: bool) -> None:
    """Raise `ModelError`, with every difference, unless the tensors are those of the tower, name by name.

    What starts anew in a tower may be missing.
    """
    with torch.device("meta"):
        plain = replace(config, lora_rank=0)
        tower: nn.Module = build_text_tower(plain) if is_text else build_video_tower(plain)
    own, fresh = tower.state_dict(), getattr(tower, "fresh", ())
    name = config.arch or config.tower
    report = ImportReport(source, kind=name, tower="text" if is_text else "video")
    report.missing = sorted(name for name in own.keys() - state.keys() if name.split(".")[0] not in fresh)
    report.unexpected = sorted(state.keys() - own.keys())
    shapes = {name: (list(state[name].shape), list(own[name].shape)) for name in own.keys() & state.keys()}
    report.mismatched = [
        f"{name} {theirs} for {ours}" for name, (theirs, ours) in sorted(shapes.items()) if theirs != ours
    ]
    report.loaded = len(shapes)
    if not report.complete:
        raise ModelError(
            f"{report.table()}\n{source} is no {name}: see missing, unexpected and mismatched above; nothing is "
            f"written. Choose the model whose file it is (`ace models`), or get the file of this one"
        )


def measure(
    state: Mapping[str, Tensor], source: Path, tower: str, config: ImportConfig
) -> dict[str, int | float | bool]:
    """The network's settings from the shapes of its tensors. Raises `ModelError` naming a tensor that is missing."""
    text = tower == "text"
    prefix = "text_model.encoder.layers." if text else "blocks."
    needed = ["text_model.embeddings.token_embedding.weight"] if text else ["pos_embed", "patch_embed.proj.weight"]
    needed.append(f"{prefix}0.mlp.fc1.weight")
    if absent := [key for key in needed if key not in state]:
        raise ModelError(f"{source} does not hold a {tower} tower: it has no tensor for {', '.join(absent)}")
    if not text and (state["pos_embed"].dim(), state["patch_embed.proj.weight"].dim()) != (3, 4):
        raise ModelError(f"{source}: pos_embed must be [1,1+P,D] and patch_embed.proj.weight [D,3,p,p]")
    depth = 1 + max(int(key.removeprefix(prefix).split(".")[0]) for key in state if key.startswith(prefix))
    width = state[needed[0]].shape[-1]
    ratio = state[needed[-1]].shape[0] / width
    head = state.get("text_projection.weight" if text else "head.weight")
    embed_dim = config.embed_dim or (len(head) if head is not None else 512)
    settings: dict[str, int | float | bool] = {"width": width, "depth": depth, "embed_dim": embed_dim}
    if ratio != 4.0:
        settings["mlp_ratio"] = ratio
    if text:
        return settings
    patch, grid = state["patch_embed.proj.weight"].shape[-1], round((state["pos_embed"].shape[1] - 1) ** 0.5)
    if config.image_size and config.image_size % patch:
        raise ModelError(f"image_size={config.image_size} is no multiple of the patch of {source}, {patch}")
    settings |= {"patch": patch, "image_size": config.image_size or patch * grid}
    if "temporal.positions" in state:
        layers = {key.split(".")[2] for key in state if key.startswith("temporal.layers.")}
        settings |= {"frames": state["temporal.positions"].shape[1], "temporal_layers": len(layers)}
    if tower != "vit":
        settings["frames"] = config.frames or (state["time_embed"].shape[1] if "time_embed" in state else 8)
    if tower != "timesformer":
        settings |= {"clip_style": "norm_pre.weight" in state, "drop_path": 0}
    return settings


def patterns(keys: Iterable[str]) -> list[str]:
    """Keys with their layer numbers joined: `blocks.{0..11}.attn.qkv.weight`."""
    groups: dict[str, list[int]] = {}
    for key in keys:
        match = re.search(r"\.(\d+)\.", key)
        shape = key if match is None else f"{key[: match.start()]}.{{}}.{key[match.end() :]}"
        groups.setdefault(shape, []).append(int(match[1]) if match else -1)
    spans = {
        shape: str(numbers[0]) if len(numbers) == 1 else f"{{{min(numbers)}..{max(numbers)}}}"
        for shape, numbers in groups.items()
    }
    return [shape.replace("{}", span, 1) for shape, span in spans.items()]


def read_source(source: Path, allow_pickle: bool = False) -> dict[str, Tensor]:
    """The tensors of a weight file or Hugging Face folder, out of their container and without `module.` or `model.`.

    Pickles are read with PyTorch's `weights_only`, which runs no code. What it refuses, and TorchScript archives
    (programs, as OpenAI's CLIP files are), need `allow_pickle`; only for files whose origin you trust. Raises
    `ModelError` naming the file and what was refused.
    """
    path = weight_file(source)
    if path.suffix == ".json":
        loaded: Any = load_sharded(path)
    else:
        loaded = load_safetensors(path) if path.suffix == ".safetensors" else load_pickle(path, allow_pickle)
    while isinstance(loaded, Mapping):
        inner = next((loaded[name] for name in CONTAINERS if isinstance(loaded.get(name), Mapping)), None)
        if inner is None:
            break
        beside = loaded.get(HEAD_BESIDE)
        if isinstance(beside, Mapping):
            inner = dict(inner) | {f"fusion_model.{key.removeprefix('module.')}": beside[key] for key in beside}
        loaded = inner
    named = loaded.items() if isinstance(loaded, Mapping) else ()
    tensors = {key: value for key, value in named if isinstance(value, Tensor)}
    if not tensors:
        raise ModelError(f"{path} holds no tensors by name (a state dict); found {type(loaded).__name__}")
    check_not_quantised(path, tensors)
    for prefix in ("module.", "model.", "module."):
        if all(key.startswith((prefix, "fusion_model.")) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def load_sharded(index: Path) -> dict[str, Tensor]:
    """Weights in several safetensors files of one folder, by their index. Raises `ModelError` naming what misses."""
    advice = "; it should name the file of each tensor: download it again"
    named = read_object(index, ModelError, advice).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise ModelError(f"{index} has no weight_map{advice}")
    tensors: dict[str, Tensor] = {}
    for name in dict.fromkeys(named.values()):
        file = index.parent / name
        if Path(name).name != name or file.suffix != ".safetensors" or not file.is_file():
            raise ModelError(
                f"{index} names {name}, which is no safetensors file beside it; download all its files into one folder"
            )
        tensors |= load_safetensors(file)
    if differing := sorted(tensors.keys() ^ named.keys()):
        raise ModelError(f"{index} and its files differ in {', '.join(differing[:4])}; download all of them again")
    return tensors


def check_not_quantised(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise `ModelError` for weights in 8 bits or fewer: what was rounded away cannot be trained on."""
    for name, tensor in tensors.items():
        if tensor.dim() >= 2 and tensor.element_size() == 1 and tensor.dtype != torch.bool:
            raise ModelError(
                f"{path} is quantised ({name} is {str(tensor.dtype).removeprefix('torch.')}): take the weights that it "
                f"was made from, in float32, float16 or bfloat16"
            )


def weight_file(source: Path) -> Path:
    """The file itself, also of a Hugging Face folder. Raises `ModelError` when there is none."""
    if not source.exists():
        raise ModelError(f"source={source} does not exist")
    for path in (source, *(source / name for name in FOLDER_FILES)):
        if not path.is_dir() and path.exists():
            return path
    if (source / "pytorch_model.bin.index.json").is_file():
        raise ModelError(
            f"source={source} is in several PyTorch files; take its safetensors (with {INDEX}), or save it whole with "
            f"transformers: AutoModel.from_pretrained(FOLDER).save_pretrained(FOLDER2)"
        )
    raise ModelError(f"source={source} is a folder without {' or '.join(FOLDER_FILES)}; name the weight file")


def load_pickle(path: Path, allow_pickle: bool) -> Any:
    """A PyTorch checkpoint, or the state dict of a TorchScript archive."""
    # A TorchScript archive is a zip file that holds its constants as a file of their own.
    if zipfile.is_zipfile(path) and any(name.endswith("/constants.pkl") for name in zipfile.ZipFile(path).namelist()):
        if not allow_pickle:
            raise ModelError(
                f"{path} is a TorchScript archive, a program and not only weights; if you trust where it comes from, "
                f"add allow_pickle=true"
            )
        print(f"warning: {path} is loaded as a program (allow_pickle=true)", flush=True)
        return torch.jit.load(str(path), map_location="cpu").state_dict()
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None and not zipfile.is_zipfile(path):
            raise not_a_checkpoint(path) from error
        if not allow_pickle:
            raise ModelError(
                f"{path} holds Python objects that are not weights and could run code"
                f"{f' ({refused[1]})' if refused else ''}; if you trust where it comes from, add allow_pickle=true"
            ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise not_a_checkpoint(path) from error
    print(f"warning: {path} is loaded with all its Python objects (allow_pickle=true)", flush=True)
    try:
        return torch.load(path, map_location="cpu", weights_only=False)  # allow_pickle=true  # nosec B614
    except (ModuleNotFoundError, AttributeError) as error:
        raise ModelError(f"{path} needs Python code of its own project to load: {error}") from error


def not_a_checkpoint(path: Path) -> ModelError:
    """What a file that torch cannot read looks like by its first bytes, and what to do; torch tells neither."""
    with path.open("rb") as file:
        head = file.read(200)
    text = head.decode("utf-8", errors="replace")
    if text.lstrip().lower().startswith(("<!doctype", "<html")):
        what = "is a web page, as a download link gives that wants a log-in; download the weight file itself"
    elif head.startswith(b"GGUF"):
        what = "is quantised for llama.cpp (GGUF); take the weights that it was made from"
    elif text.startswith("version https://git-lfs"):
        what = "is a pointer of Git LFS and not the file: run `git lfs pull` in its repository"
    elif head and text.count("\ufffd") < 2 and all(letter.isprintable() or letter.isspace() for letter in text):
        what = f"is text, which begins with {text.splitlines()[0][:40]!r}; give a .pth, .pt, .bin or .safetensors file"
    else:
        what = f"is not a PyTorch checkpoint or is cut short ({path.stat().st_size} bytes); download it again"
    return ModelError(f"source={path} {what}")


def released_licence(report: ImportReport) -> str:
    """What the source records, as files of `ace weights` do; else what the authors of its kind chose for theirs."""
    file = weight_file(report.path)
    recorded = read_licence(file) if file.suffix == ".safetensors" else NOT_RECORDED
    return KINDS[report.kind].licence if recorded == NOT_RECORDED else recorded


def save_imported(state: Mapping[str, Tensor], report: ImportReport, output: Path) -> None:
    """Write the tensors with where they come from, and under which licence, in the file's metadata."""
    digest = file_sha256(weight_file(report.path))
    facts = {
        "format": "pt", "source": report.path.name, "source_sha256": digest, "kind": report.kind,
        "tower": report.tower, "licence_of_released_files": released_licence(report),
    }  # fmt: skip
    save_safetensors(state, output, metadata=facts)
