"""Every setting of a run, typed, with its default and its meaning; `checks.py` says what they may be."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class ClipConfig:
    """What one clip is: `frames` frames over `seconds` seconds; a test video is shown in `views` clips."""

    frames: int = 8  # shown to the model
    seconds: float = 2.0  # of video that a clip covers
    views: int = 3  # clips of one test video; their scores are fused
    view_spacing: str = (
        "ends"  # ends: the last view ends with the action | slowfast: view k starts at k/views of the way
    )
    sampling: str = (
        "window"  # window: `seconds` of the action | segments: a frame of each of `frames` parts of all of it
    )


@dataclass
class EncodingConfig:
    """The canonical encoding of stored clips: vp9 for the least space, mjpeg to train on GPUs (docs/data.md)."""

    codec: str = "vp9"  # vp9 | mjpeg | h264
    short_side: int = 256  # pixels; 0 keeps the size of the source
    fps: float | None = None  # frames per second; null keeps the rate of the source
    gop: int = 32  # frames from key frame to key frame
    quality: int = 20  # the codec's own scale, lower is better: CRF for h264 and vp9, qscale for mjpeg
    margin_s: float = 0.25  # seconds kept on each side of a segment


@dataclass
class DatasetConfig:
    """Where labels and clips come from, and which actions are novel."""

    name: str = MISSING  # how results and tables call it
    kind: str = MISSING  # csv | mstcn | gtea | ikea | ata | webdataset | tabletop
    root: str | None = (
        None  # folder of mstcn, gtea, ikea, ata or webdataset; each reader's docstring says what lies in it
    )
    annotations: str | None = None  # CSV file, or an annotation tool's export (csv), or IKEA-ASM's database or JSON
    columns: dict[str, str] = field(default_factory=dict)  # of csv: our columns -> those of a file that has others
    classes: str | None = None  # the data set's labels as actions (JSON); null: whatever the clips show
    views: list[str] | None = None  # cameras of ikea or ata; null: all
    frame_tolerance_s: float = 1.0  # seconds by which labels and video may differ in length (gtea, ikea, ata)
    shards: str = MISSING  # folder of the WebDataset shards
    synonyms: str | None = None  # synonym tree file (JSON)
    srt: str | None = None  # label sets of the Synonym Robustness Test (JSON); null: drawn from the trees of the test
    srt_base: str | None = None  # the same for base actions, which the paper's Fig. 3 needs
    novel: list[str] | None = None  # novel actions; null: those without a training clip
    novel_share: float | None = None  # instead of a list: this share of the classes, those of the least frequent verbs
    fold: int = 0  # of a cross-validation, from 1; 0: there is none
    test_groups: list[str] | None = None  # groups (people, environments) that are tested; null: as stored in the shards
    left_out_groups: list[str] = field(default_factory=list)  # groups in neither split, such as a validation person
    clip: ClipConfig = field(default_factory=ClipConfig)
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    clips_per_shard: int = 128  # of one tar file
    workers: int = 0  # processes that build or check shards; 0: one per core
    timeout_s: float = 600.0  # seconds after which a process that hangs on a video is ended, by every command; 0: never
    task: int | None = None  # the part of a build that this process makes, 0 to tasks - 1; null: the SLURM array's
    tasks: int | None = None  # parts that a build is made in; null: the SLURM array's number of tasks, else 1
    allow_quarantine: bool = False  # finish a build without the segments that failed, listed in quarantine.jsonl
    pad: bool = False  # repeat the last frame of a video that is shorter than a clip; else it is refused
    world: dict[str, Any] = field(default_factory=dict)  # of a rendered world, which checks them itself


@dataclass
class VideoConfig:
    """The video encoder. `frames`: length of the weights' `time_embed`, resized to `dataset.clip.frames`."""

    tower: str = "timesformer"  # timesformer | vit (every frame) | spacetime | open_clip | transformers | internvideo2
    arch: str | None = (
        None  # of open_clip: its name of a model of that kind, in the sizes here; of transformers: videomae
    )
    clip_style: bool = False  # of vit and spacetime: CLIP's norm before the blocks, QuickGELU, no patch bias
    pooling: str = "mean"  # of vit, open_clip: mean over frames | frames: keep them, for model.similarity.spotting
    temporal: str = (
        "mean"  # of open_clip: mean of frames | transformer over them | adapter before trained blocks | joint
    )
    temporal_layers: int = 0  # of vit, and of temporal=transformer: transformer layers over the frames' embeddings
    prompt_tokens: int = 0  # of vit: learned tokens a block
    prompt_depth: int = 9  # of vit: blocks that have them, counted from the first
    width: int = 768  # numbers of a token
    depth: int = 12  # transformer blocks
    heads: int = 12  # attention heads of a block
    patch: int = 16  # side of a patch, in pixels
    image_size: int = 224  # side of a frame, in pixels
    mean: list[float] = field(default_factory=lambda: [0.45, 0.45, 0.45])  # of its pretraining's RGB in [0, 1]
    std: list[float] = field(default_factory=lambda: [0.225, 0.225, 0.225])  # of its pretraining's RGB in [0, 1]
    frames: int = 8  # length of the weights' `time_embed`, or of what open_clip's temporal part begins with
    mlp_ratio: float = 4.0  # width of the MLP, in widths of a token
    drop_path: float = 0.1  # stochastic depth: the share of blocks skipped, at the last one
    embed_dim: int = 512  # width of the space that both encoders share
    time_embed_resize: str = "nearest"  # nearest | linear
    attention: str = "auto"  # auto | triton | xformers | sdpa
    trained_blocks: int = 3  # counted from the last
    lora_rank: int = 0  # of updates that these blocks learn to attention's matrices (LoRA); 0: they train whole
    lora_alpha: float | None = None  # updates are multiplied by it over the rank; null: twice the rank
    train_head: bool = False  # the projection into the shared space
    train_norm: bool = False  # the last norm
    train_time_embed: bool = False  # the embeddings of the times
    trunk_precision: str = "same"  # products of the frozen blocks: same as the others | fp8 (Ada, Hopper), fewer digits
    recompute: str = "auto"  # auto | none | norms (and GELU) | blocks: what the backward pass computes again
    compile: str = "auto"  # auto | none | cudagraphs | default | reduce-overhead (both) | max-autotune, as in torch
    weights: str | None = None  # safetensors file


@dataclass
class TextConfig:
    """The text tower: CLIP's text transformer at any width, one of open_clip, a BERT, or all-MiniLM-L6-v2."""

    tower: str = "clip"  # clip | open_clip | bert | minilm
    arch: str | None = None  # of open_clip: its name of a model of that kind; the sizes are those given here
    tokenizer: str | None = None  # of open_clip: its file (tokenizer.json); null: CLIP's, which open_clip carries
    vocabulary: int = 49408  # of open_clip: rows of the token embedding
    context: int = 77  # of open_clip: tokens of the longest phrase
    prompts: list[str] = field(default_factory=lambda: ["{}"])  # a phrase is encoded as the mean over these sentences
    prompt_tokens: int = 0  # of clip: learned tokens before the phrase
    prompt_depth: int = 9  # of clip: layers that have their own, counted from the first
    width: int = 512  # numbers of a token
    depth: int = 12  # transformer layers
    heads: int = 8  # attention heads of a block
    mlp_ratio: float = 4.0  # width of the MLP, in widths of a token
    embed_dim: int = 512  # width of the space that both encoders share
    trained_layers: int = 0  # counted from the last
    lora_rank: int = 0  # of updates that these layers learn to attention's matrices (LoRA); 0: they train whole
    lora_alpha: float | None = None  # updates are multiplied by it over the rank; null: twice the rank
    train_projection: bool = True  # that into the shared space
    release_frozen: bool = True  # free the weights that only new phrases need; those of the run folder serve them
    weights: str | None = None  # safetensors file


@dataclass
class SimilarityConfig:
    """How videos are compared with labels. ACE: the mean cosine over a class's phrases, at a fixed temperature."""

    learn_temperature: bool = False  # times a learned factor that starts at 1 (CLIP's logit scale)
    bias: bool = False  # of objective=sigmoid: plus a learned bias; it and the factor start as open_clip's weights say
    spotting: bool = False  # BIKE: frames weighed by each phrase; needs model.video.pooling=frames
    attributes: str | None = None  # of spotting: text file, an attribute a line
    attribute_share: float = 0.3  # of spotting: weight of the attributes' score
    top: int = 5  # of spotting: attributes taken for a video
    normalise_pooled: bool = True  # of spotting: pooled frames get unit length again; BIKE's authors leave them shorter


@dataclass
class ModelConfig:
    """Both encoders. `init: random` builds them untrained, `random_video` the video side alone (Table 5)."""

    init: str = "weights"  # weights | random | random_video
    video: VideoConfig = field(default_factory=VideoConfig)
    text: TextConfig = field(default_factory=TextConfig)
    similarity: SimilarityConfig = field(default_factory=SimilarityConfig)


@dataclass
class MethodConfig:
    """A method: its objective and labels. configs/method/NAME.yaml says the rest of it: what trains, and the recipe."""

    name: str = "ace"  # of the file of configs/method; how results and tables call the method
    objective: str = (
        "concept"  # concept (Eq. 8) | sigmoid (SigLIP's) | label (a plain cross-entropy) | bike (symmetric KL)
    )
    temperature: float = 0.02  # τ: cosines are divided by it
    label_smoothing: float = 0.0  # of objective=label
    leaf_augmentation: bool = True  # Eq. 3: average over the children of a label's verb
    shadow_negatives: bool = True  # Eq. 6 to 8
    fixed_labels: bool = True  # L_fixed
    random_labels: bool = True  # L_rand
    children: int | None = None  # M of the first order; null: all children of the tree file
    grandchildren: int | None = None  # M of the second order; null: all
    children_include_parent: bool = True  # M counts the parent verb itself
    exclude_real_classes: bool = False  # a shadow negative may not equal a base class
    exclude_novel_labels: bool = False  # no phrase of a shadow negative may be the label of a novel class
    independent_draws: bool = False  # draw per class instead of once per root verb
    shadow_band: list[float] = field(default_factory=lambda: [0.0, 1.0])  # shadow negatives by similarity: rank shares
    l2_sp: float = 0.0  # weight of a pull of the text side's weights to where they began; 0: none
    distil: float = 0.0  # weight of a loss on changes of the phrases' similarities since the start; 0: none
    margin: float = 0.0  # by which a phrase is to be nearer to its own class's mean than to another's; 0: no such loss


@dataclass
class LoaderConfig:
    """Decoding and augmentation. Training: short side uniform in [min, max], random crop, flip; test: centre crop."""

    backend: str = "auto"  # auto | dali | pyav | torchcodec (a package of its own)
    threads: int = 0  # that decode for a rank; 0: all its cores beside a GPU, two on a CPU, which computes as well
    prefetch: int = 2  # batches decoded ahead
    crop: int = 224  # side of the square that the model sees, in pixels
    short_side_min: int = 256  # of training clips, in pixels, before the crop
    short_side_max: int = 320  # the largest of them
    test_short_side: int = 256  # of test clips, in pixels, before the centre crop
    flip: float = 0.5  # probability that a training clip is mirrored
    mixup: float = (
        0.0  # of method.objective=label: clips and labels of a batch blended, the share Beta(mixup, mixup); 0: none
    )
    cutmix: float = 0.0  # the same with a rectangle of another clip; with both, half of the batches each
    color_jitter: float = 0.0  # probability that brightness, contrast and saturation of a training clip change
    gray_scale: float = 0.0  # probability that a training clip loses its colours
    augment: bool = True  # false: training clips are cropped as test views are, and not flipped
    feature_cache: str | None = None  # folder for the frozen video blocks' features; needs augment=false
    feature_cache_gib: float = 50.0  # the most that this folder may hold
    mean: list[float] = field(default_factory=lambda: [0.45, 0.45, 0.45])  # of RGB in [0, 1]
    std: list[float] = field(default_factory=lambda: [0.225, 0.225, 0.225])  # of RGB in [0, 1]
    dtype: str = "float32"  # float32: the loader normalises; uint8: a TimeSformer's patch embedding does, from bytes


@dataclass
class MetersConfig:
    """What a run measures of its speed beside clips/s."""

    mfu: bool | None = None  # time large matrix products for half a second at the start, the ceiling; null: on CUDA


@dataclass
class ProfileConfig:
    """Which steps are profiled."""

    steps: int = 0  # recorded, one after the other; 0: three with profile=true, else none
    after: int = 5  # steps of this start that go before them
    trace: bool = True  # a torch-profiler trace, which slows the recorded steps; without it times by part alone
    memory_snapshot: bool = True  # of CUDA's allocator


@dataclass
class TrainingConfig:
    """The optimisation. Batch sizes are global; learning rates are functions of the step."""

    device: str = "auto"  # auto | cpu | cuda
    precision: str = "auto"  # auto | fp32 | bf16; auto: bf16 on CUDA devices that have it
    epochs: float = 15.0  # passes over the training clips; they give the number of steps
    batch_size: int = 16  # clips per optimizer step, over all ranks
    accumulation: int = 1  # micro-batches that make one optimizer step
    lr_video: float = 0.005  # learning rate of the video side
    lr_text: float = 0.005  # learning rate of the text side
    lr_new: float | None = (
        None  # of layers over frames and prompts of the video side, which may start anew; null: lr_video
    )
    optimizer: str = "sgd"  # sgd | adamw
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # of adamw
    momentum: float = 0.9  # of sgd, as is nesterov
    nesterov: bool = True  # Nesterov's momentum
    weight_decay: float = 1e-4  # of all weights that train
    clip_norm: float = 0.0  # largest norm of the gradient of all that trains; 0: none (DeepSpeed's own default is 1)
    schedule: str = "steps"  # steps | cosine | constant
    milestones: list[float] = field(default_factory=lambda: [0.7333, 0.9333])  # of `steps`: shares of the run
    gamma: float = 0.1  # of `steps`: the rate is multiplied by it at each milestone
    warmup: float = 0.0  # share of the run
    layer_decay: float = 1.0  # the rate of a layer is that of the one above it times this; 1: one rate a side
    swa_start: float | None = None  # average the weights of all steps from this share of the run on (SWA); null: none
    ema_decay: float = 0.0  # of a running average of the weights, which is then tested and exported; 0: none
    log_every_steps: int = 10  # steps from line to line of metrics.jsonl
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])  # or wandb, trackio; beside metrics.jsonl
    save_every_steps: int = 200  # steps from checkpoint to checkpoint
    save_every_minutes: float = 15.0  # save also when the last one is this old
    keep_checkpoints: int = 2  # how many are kept, the newest
    keep_best: bool | str = (
        False  # test and export the weights that validated best, by accuracy (true) or base_srt; false: the last
    )
    early_stopping_patience: int = 0  # finish after so many validations that are no better than the best; 0: never
    stop_after_steps: int | None = None  # stop early and save, as a preempted job would; null: train to the end
    max_steps: int | None = None  # shortens the schedule itself
    stall_after_s: float = 120.0  # a stage of a step (data, forward, ...) that takes longer is named, with stacks
    collective_timeout_s: float = 600.0  # a rank that the others wait for longer is given up, and the run with it
    gc_every_steps: int = 0  # collect garbage at these steps alone, on all ranks at once; 0: whenever Python likes
    deterministic: bool = False  # equal runs give equal bits on a GPU too, or the operator that cannot is named
    meters: MetersConfig = field(default_factory=MetersConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)


@dataclass
class EvaluationConfig:
    """How a test video is scored (ACE, implementation details; Synonym Robustness Test)."""

    scorer: str = "similarity"  # similarity: the model | chance: what guessing is expected to score, without a model
    interpolate: float = 1.0  # test and export weights at this share of the way from before training to after (WiSE-FT)
    batch_size: int = 16  # clips per forward pass of one rank
    view_fusion: str = "softmax_sum"  # softmax_sum | logit_mean | logit_max | embedding_mean
    synonyms: str | None = None  # synonym trees of the test (Table 4); null: those of the training
    children: int | None = (
        None  # M of the first order in the test; null: all children, whatever the training draws from
    )
    grandchildren: int | None = None  # M of the second order in the test; null: all
    labels_without_node: str = "all_alone_when_any_is"  # a label whose verb the trees do not know; or alone | wordnet
    srt_seed: int = 0  # of label sets that are drawn from the trees
    srt_leaves: bool = True  # with leaf augmentation: SRT labels too are averaged over their children
    test: bool = True  # false: no test at the end, results.json holds the validation alone (a search for rates)
    every_steps: int = 0  # validate this often on clips of the training split that are held out for it; 0: never
    validation_groups: list[str] = field(default_factory=list)  # the groups (people, cameras) held out; or instead
    validation_share: float = 0.0  # this share of the groups, drawn by `seed`
    validation_words: float = 0.0  # share of each base verb's synonyms that never trains: base SRT, by `seed`; 0: none


@dataclass
class Config:
    """A whole run."""

    name: str = MISSING  # of the run; the experiment's unless you say otherwise
    run: str = "runs/${name}"  # the run folder
    init_from: str | None = None  # a finished run, whose weights this one starts from; null: model.*.weights
    seed: int = 0  # of drawn labels, clips, crops and new weights
    profile: bool = False  # record a few steps: see training.profile
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    deepspeed: dict[str, Any] = field(default_factory=dict)  # passed to DeepSpeed as it is
