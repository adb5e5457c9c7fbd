"""Pretrains both towers on the narrated tabletop corpus: the video tower with labels, then both on narrations.

Shapes: N clips, B batch, T frames, H height, W width, S phrases, E embedding width.
"""

import math
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from ace_dist.concepts import SynonymTrees
from ace_dist.config import Config, LoaderConfig, ModelConfig, SimilarityConfig, load_config, split_settings
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.models.weights import OWN_LICENCE, save_safetensors
from ace_dist.utils.errors import ConfigError
from ace_dist.utils.files import write_json, write_text
from ace_dist.worlds.tabletop.corpus import NarratedClip, narrated_clips, render_narrated
from ace_dist.worlds.tabletop.world import OBJECTS, VERBS, build_world


@dataclass
class OutputConfig:
    output: str = "runs/tabletop_weights"  # folder of the weights; `assets/weights/tabletop` has the shipped ones


@dataclass
class PretrainConfig:
    """The optimisation. `temperature` is fixed, of the sigmoid loss it is where the learned scale begins; `bf16`
    computes in bfloat16 and keeps float32 weights.

    Supervised pretraining of the video tower comes first, in `supervised_steps` steps of `supervised_batch` clips; then
    both towers learn from narrations, in `steps` steps of `batch_size` pairs. The first part does not depend on how
    clips are narrated, so worlds that differ in `corpus.synonym_tail`, `verb_noise` or `verb_missing` alone can share
    it: `supervised_weights` holds the video tower after it, and is written when the file does not exist.
    """

    seed: int = 0
    supervised_steps: int = 700
    supervised_batch: int = 64
    supervised_lr: float = 1.5e-3
    steps: int = 300
    batch_size: int = 128
    loss: str = "softmax"  # of narrations: softmax (CLIP's) | sigmoid (SigLIP's, with a learned scale and bias)
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    temperature: float = 0.05
    bf16: bool = True
    test_clips: int = 384
    supervised_weights: str | None = None  # safetensors file; null: nothing is kept
    threads: int = 2  # that train, and processes that render; another number rounds differently


def pretrain_command(argv: Sequence[str]) -> None:
    """Render the narrated corpus, train on it, write weights (fp16) as the model's file loads them, and provenance.

    A model with tokens of its own gets a tokenizer that is made of the narrations.
    """
    own, others = split_settings(argv, OutputConfig)
    settings, rest = read_settings(others)
    config, folder = load_config(rest), Path(own.output)
    if config.model.text.tokenizer is not None:
        tokenizer = write_tokenizer(config, folder / "tokenizer.json")
        config = replace(config, model=replace(config.model, text=replace(config.model.text, tokenizer=tokenizer)))
    steps = f"{settings.supervised_steps} + {settings.steps} steps"
    print(f"{steps}, 13 minutes when the weights of model=tabletop were made, into {folder}", flush=True)
    torch.set_num_threads(settings.threads)
    start_s = time.perf_counter()
    model, losses, accuracies = pretrain(config, settings, workers=settings.threads)
    wall_s = round(time.perf_counter() - start_s)
    video = {**model.video.state_dict(), **model.similarity.logits(settings.temperature)}
    for name, state in (("video", video), ("text", model.text.state_dict())):
        licence = {"licence_of_released_files": OWN_LICENCE}
        save_safetensors(state, folder / f"{name}.safetensors", torch.float16, licence)
    provenance = {
        "command": shlex.join(["python", "launchers/pretrain_tabletop.py", *argv]),
        "pretrain": asdict(settings),
        "world": asdict(build_world(config.dataset.world)),
        "loss_first": round(losses[0], 4),
        "loss_last_25": round(float(np.mean(losses[-25:])), 4),
        "narrated_test_percent": {name: round(value, 1) for name, value in accuracies.items()},
        "wall_s": wall_s,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    write_json(folder / "provenance.json", provenance)
    print(f"{folder}: narrated test {accuracies}, {wall_s} s")


def read_settings(argv: Sequence[str]) -> tuple[PretrainConfig, list[str]]:
    """Split command-line settings into those of `pretrain.*`, parsed, and the others, left for the configuration."""
    settings, rest = split_settings(argv, PretrainConfig, "pretrain.")
    positive = ("steps", "supervised_steps", "batch_size", "supervised_batch", "test_clips", "threads")
    if min(getattr(settings, name) for name in positive) < 1 or settings.temperature <= 0:
        raise ConfigError("pretrain: steps, batches, test_clips and threads must be at least 1, temperature positive")
    if settings.loss not in ("softmax", "sigmoid"):
        raise ConfigError(f"pretrain.loss={settings.loss} is not one of softmax, sigmoid")
    return settings, rest


def write_tokenizer(config: Config, path: Path) -> str:
    """Byte pairs of the corpus' narrations, `model.text.vocabulary` at most, which can spell any label; its path."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    words = SynonymTrees.load(config.dataset.synonyms or "")
    texts = [
        clip.text
        for clip in narrated_clips({verb: words.children(verb) for verb in VERBS}, build_world(config.dataset.world))
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.model.text.vocabulary, special_tokens=["<pad>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.enable_padding(pad_id=0, pad_token="<pad>")  # nosec B106: a token of the text
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, tokenizer.to_str(pretty=False))
    return str(path)


def pair_loss(
    model: DualEncoder, video_BE: Tensor, text_BE: Tensor, texts: NDArray[np.int64], settings: PretrainConfig
) -> Tensor:
    """Of B pairs, by `pretrain.loss`."""
    if settings.loss == "softmax":
        return info_nce(video_BE, text_BE, texts, settings.temperature)
    cosines = functional.normalize(video_BE, dim=1) @ functional.normalize(text_BE, dim=1).T
    return sigmoid_of_pairs(model.similarity.scale([cosines / settings.temperature])[0], texts)


def sigmoid_of_pairs(scores_BB: Tensor, texts: NDArray[np.int64]) -> Tensor:
    """SigLIP's loss (algorithm 1) of scaled and biased cosines; equal sentences are positives of each other."""
    signs = torch.from_numpy(2.0 * (texts[:, None] == texts[None, :]) - 1).to(scores_BB)
    return -functional.logsigmoid(signs * scores_BB).sum(1).mean()


def info_nce(video_BE: Tensor, text_BE: Tensor, texts: NDArray[np.int64], temperature: float) -> Tensor:
    """Symmetric InfoNCE of B pairs; equal sentences are no negatives of each other (all of them are positives)."""
    scores = functional.normalize(video_BE, dim=1) @ functional.normalize(text_BE, dim=1).T / temperature
    same = torch.from_numpy(texts[:, None] == texts[None, :]).to(scores.device, torch.float32)
    target = same / same.sum(1, keepdim=True)
    loss: Tensor = 0.5 * (functional.cross_entropy(scores, target) + functional.cross_entropy(scores.T, target))
    return loss


def normalise(clips: NDArray[np.uint8], short_side: int, loader: LoaderConfig) -> Tensor:
    """uint8 [B,T,H,W,3] -> float32 [B,T,3,s,s], resized to `short_side` and normalised."""
    video = torch.from_numpy(clips).permute(0, 1, 4, 2, 3).float().div_(255.0)
    flat = functional.interpolate(video.flatten(0, 1), size=short_side, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (loader.mean, loader.std))
    batch: Tensor = ((flat - mean) / std).unflatten(0, video.shape[:2])
    return batch


def augment(clips: NDArray[np.uint8], loader: LoaderConfig, rng: np.random.Generator) -> Tensor:
    """A training batch: one short side for the batch, a crop and a flip for each clip -> [B,T,3,crop,crop]."""
    side = int(rng.integers(loader.short_side_min, loader.short_side_max + 1))
    rows = []
    for clip in normalise(clips, side, loader):
        y, x = rng.integers(0, side - loader.crop + 1, 2)
        crop = clip[..., y : y + loader.crop, x : x + loader.crop]
        rows.append(crop.flip(-1) if rng.uniform() < loader.flip else crop)
    return torch.stack(rows)


def encode_text(model: DualEncoder, sentences: list[str]) -> Tensor:
    """Sentences -> [S,E] with gradients to every parameter, the token table included."""
    tower = model.text
    ids, lengths = tower.tokenize(sentences)
    hidden = tower.embed(ids)
    for index in range(tower.config.depth):
        hidden = tower.run_layer(index, hidden, lengths)
    return tower.project(tower.pool(hidden, lengths))


@torch.no_grad()
def encode_clips(model: DualEncoder, clips: NDArray[np.uint8], loader: LoaderConfig) -> Tensor:
    """Unit embeddings [N,E] of the centre crops of clips uint8 [N,T,H,W,3]."""
    model.eval()
    edge = (loader.test_short_side - loader.crop) // 2
    crop = slice(edge, edge + loader.crop)
    parts = []
    for first in range(0, len(clips), 64):
        videos = normalise(clips[first : first + 64], loader.test_short_side, loader)
        parts.append(model.encode_video(videos[..., crop, crop]).float())
    return functional.normalize(torch.cat(parts), dim=1)


@torch.no_grad()
def narrated_accuracy(model: DualEncoder, video_NE: Tensor, clips: list[NarratedClip]) -> dict[str, float]:
    """Accuracy in percent with root labels: of the action among all, and of the verb when the object is known."""
    labels = [f"{verb} {name}" for verb in VERBS for name in OBJECTS]
    text = functional.normalize(encode_text(model, labels), dim=1)
    scores = (video_NE @ text.T).view(len(clips), len(VERBS), len(OBJECTS))
    verb = torch.tensor([VERBS.index(clip.verb) for clip in clips])
    name = torch.tensor([OBJECTS.index(clip.object) for clip in clips])
    rows = torch.arange(len(clips))
    best = scores.flatten(1).argmax(1)
    return {
        f"action_of_{len(labels)}": 100 * float((best == verb * len(OBJECTS) + name).float().mean()),
        f"verb_of_{len(VERBS)}": 100 * float((scores[rows, :, name].argmax(1) == verb).float().mean()),
        f"object_of_{len(OBJECTS)}": 100 * float((best % len(OBJECTS) == name).float().mean()),
    }


def sentence_encoder(model: DualEncoder, sentences: Sequence[str]) -> Callable[[NDArray[np.int64]], Tensor]:
    """Rows of `sentences` -> [rows,E], with gradients; layers that stay as they came run once for each sentence."""
    if model.text.config.trained_layers:
        return lambda rows: encode_text(model, [sentences[row] for row in rows])
    cache = model.build_text_features(dict.fromkeys(sentences))
    indices = cache.indices(sentences)
    return lambda rows: cache.encode(indices[torch.from_numpy(rows)])


def build_towers(model: ModelConfig, loss: str = "softmax") -> DualEncoder:
    """Both towers with every parameter training, randomly initialised; of MiniLM, which knows words, the projection.

    The sigmoid loss has a scale and a bias, which train too.

    The video tower's official initialisation supposes an image model's weights and starts positions at 0.02. From
    scratch it learns objects and hardly any motion: after 200 supervised steps 14 % of the verbs; 35 % with positions
    and times as large as the patches' embeddings and matrices of Xavier's variance.
    """
    video = replace(
        model.video, trained_blocks=model.video.depth, train_head=True, train_norm=True, train_time_embed=True,
        drop_path=0.0, weights=None, lora_rank=0,
    )  # fmt: skip
    trained_layers = 0 if model.text.tower == "minilm" else model.text.depth
    text = replace(model.text, trained_layers=trained_layers, train_projection=True, weights=None, lora_rank=0)
    learned = loss == "sigmoid"
    similarity = SimilarityConfig(learn_temperature=learned, bias=learned)
    towers = DualEncoder(video, text, similarity).requires_grad_(True)
    if not trained_layers:
        towers.text.freeze()
    for module in towers.video.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
    for name in ("pos_embed", "time_embed"):
        if hasattr(towers.video, name):  # towers of open_clip have no times
            torch.nn.init.normal_(towers.video.get_parameter(name), std=0.3)
    return towers


def lr_factor(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up over a share of the steps, then half a cosine to 0."""
    warm = max(1, round(warmup * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def pretrain(
    config: Config, settings: PretrainConfig, workers: int = 1
) -> tuple[DualEncoder, list[float], dict[str, float]]:
    """Render the corpus of `dataset.world`, train both towers on it, and test them on further clips of its domain.

    Returns the towers, the contrastive losses and accuracies in percent: a function of the settings and of the number
    of threads. `workers` processes render.
    """
    start_s = time.perf_counter()
    world, trees = build_world(config.dataset.world), SynonymTrees.load(config.dataset.synonyms or "")
    clip = (config.dataset.clip.frames, config.dataset.clip.seconds)
    words = {verb: trees.children(verb) for verb in VERBS}
    corpus = narrated_clips(words, world)
    videos = render_narrated(corpus, world, *clip, workers=workers)
    print(f"rendered {len(corpus)} narrated clips in {time.perf_counter() - start_s:.0f} s")
    torch.manual_seed(settings.seed)
    model = build_towers(config.model, settings.loss)
    weights_file = None if settings.supervised_weights is None else Path(settings.supervised_weights)
    if weights_file is not None and weights_file.is_file():
        model.video.load_state_dict(load_file(weights_file))
        print(f"supervised pretraining: read from {weights_file}")
    else:
        pretrain_supervised(model, videos, corpus, config.loader, settings)
        if weights_file is not None:
            save_safetensors(model.video.state_dict(), weights_file)
    losses = pretrain_contrastive(model, videos, [narrated.text for narrated in corpus], config.loader, settings)
    held_out = narrated_clips(words, world, settings.test_clips, start=len(corpus))
    videos = render_narrated(held_out, world, *clip, workers=workers)
    return model, losses, narrated_accuracy(model, encode_clips(model, videos, config.loader), held_out)


def pretrain_supervised(
    model: DualEncoder,
    videos: NDArray[np.uint8],
    clips: Sequence[NarratedClip],
    loader: LoaderConfig,
    settings: PretrainConfig,
) -> None:
    """Teach the video tower to name the verb and the object that a clip of the corpus *shows*.

    The paper's TimeSformer starts from a supervised image model, too. Contrastive learning from noisy narrations alone
    finds the objects within minutes on two cores, but not the motions. The two linear classifiers are thrown away.
    """
    rng = np.random.default_rng([settings.seed, 2])
    width, steps, lr = model.video.config.embed_dim, settings.supervised_steps, settings.supervised_lr
    classifiers = torch.nn.ModuleList([torch.nn.Linear(width, len(VERBS)), torch.nn.Linear(width, len(OBJECTS))])
    targets = [
        torch.tensor([VERBS.index(clip.verb) for clip in clips]),
        torch.tensor([OBJECTS.index(clip.object) for clip in clips]),
    ]
    parameters = [*model.video.parameters(), *classifiers.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=settings.weight_decay)
    hits: list[list[float]] = []
    model.train()
    for step in range(steps):
        rows = rng.integers(0, len(videos), settings.supervised_batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            embedded = model.encode_video(augment(videos[rows], loader, rng))
        scores = [classifier(embedded.float()) for classifier in classifiers]
        losses = [functional.cross_entropy(s, target[rows]) for s, target in zip(scores, targets, strict=True)]
        take_step(torch.stack(losses).sum(), optimizer, parameters, lr * lr_factor(step, steps, settings.warmup))
        hits.append([float((s.argmax(1) == t[rows]).float().mean()) for s, t in zip(scores, targets, strict=True)])
        if (step + 1) % 50 == 0:
            verb, name = 100 * np.mean(hits[-50:], axis=0)
            print(f"supervised pretraining: step {step + 1}/{steps}  verb {verb:.0f} % object {name:.0f} %")


def take_step(loss: Tensor, optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], lr: float) -> None:
    """One step of the optimizer at this rate, with the norm of all gradients clipped at 1."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def pretrain_contrastive(
    model: DualEncoder,
    videos: NDArray[np.uint8],
    sentences: list[str],
    loader: LoaderConfig,
    settings: PretrainConfig,
) -> list[float]:
    """`pretrain.loss` in whole epochs in shuffled order, every pair as it was narrated; returns the losses."""
    rng = np.random.default_rng([settings.seed, 1])
    codes = np.unique(sentences, return_inverse=True)[1].astype(np.int64)
    encode_sentences = sentence_encoder(model, sentences)
    # Vectors and embeddings, the token table among them, do not decay.
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    decaying = [name for name, p in trained.items() if p.dim() > 1 and "embed" not in name and "token" not in name]
    groups = [
        {"params": [trained[name] for name in decaying], "weight_decay": settings.weight_decay},
        {"params": [p for name, p in trained.items() if name not in decaying], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98))
    order = np.zeros(0, dtype=np.int64)
    losses: list[float] = []
    model.train()
    for step in range(settings.steps):
        while len(order) < settings.batch_size:
            order = np.concatenate([order, rng.permutation(len(videos))])
        rows, order = order[: settings.batch_size], order[settings.batch_size :]
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            video = model.encode_video(augment(videos[rows], loader, rng))
            text = encode_sentences(rows)
        loss = pair_loss(model, video.float(), text.float(), codes[rows], settings)
        take_step(loss, optimizer, model.parameters(), settings.lr * lr_factor(step, settings.steps, settings.warmup))
        losses.append(float(loss.detach()))
        if (step + 1) % 25 == 0:
            print(f"step {step + 1}/{settings.steps}  loss {np.mean(losses[-25:]):.3f}")
    return losses
