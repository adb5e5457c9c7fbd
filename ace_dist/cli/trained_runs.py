"""What is done with a trained run: `ace classify`, `ace explore`, `ace export`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from ace_dist.cli.settings import ClipsOfRun, WeightsOfRun
from ace_dist.config import parse_settings
from ace_dist.utils.errors import ConfigError


@dataclass
class ClassifySettings:
    run: str = MISSING  # a run folder, or an export
    video: str = MISSING  # a video file
    actions: list[str] = MISSING  # a list such as '[spin block, hammer pin]'
    start_s: float | None = None  # start of the action in seconds
    end_s: float | None = None  # its end
    evaluation: WeightsOfRun = field(default_factory=WeightsOfRun)


def classify(argv: list[str]) -> None:
    """Classify a video among any labels: `ace classify run=DIR video=FILE actions='[spin block, ...]'`.

    Prints the probability of each label, and what was averaged for it.
    """
    settings = parse_settings(argv, ClassifySettings)
    from ace_dist.data.run_inputs import check_model_folder

    check_model_folder(Path(settings.run))
    from ace_dist.classifier import Classifier

    classifier = Classifier.load(settings.run, interpolate=settings.evaluation.interpolate)
    result = classifier.classify(settings.video, settings.actions, start_s=settings.start_s, end_s=settings.end_s)
    print(result.table())


@dataclass
class ExploreSettings:
    run: str = MISSING  # a finished run folder
    port: int = 7860  # of this machine, which alone can reach the page
    device: str = "auto"  # auto: a GPU where there is one | cpu | cuda
    largest_upload_mb: int = 200  # of a video that is uploaded; those of videos= may be larger
    dataset: ClipsOfRun = field(default_factory=ClipsOfRun)
    token: bool = False  # open only by the address that is printed; for a machine with other users
    videos: str | None = None  # folder of long videos that the Timeline page offers; null: uploads alone
    compare: str | None = None  # another run folder, asked the same side by side; null: none


def explore(argv: list[str]) -> None:
    """Talk to a trained model on a local page: `ace explore run=DIR [port=7860]`."""
    settings = parse_settings(argv, ExploreSettings)
    from ace_dist.data.run_inputs import run_config

    runs = [Path(run) for run in (settings.run, settings.compare) if run]
    for run in runs:
        run_config(run)  # says what is no run, before torch and Gradio are imported
    from ace_dist.tools.explorer.serve import serve

    serve(
        runs,
        settings.port,
        settings.device,
        settings.largest_upload_mb,
        settings.token,
        settings.dataset.shards,
        settings.videos,
    )


@dataclass
class ExportSettings:
    run: str | None = None  # a finished run folder; null with push=: output is an export already
    output: str = MISSING  # a new folder
    push: str | None = None  # OWNER/NAME: publish it on a model hub, with HF_TOKEN, at HF_ENDPOINT
    private: bool = True  # where push= makes the repository: whether its owner alone sees it
    evaluation: WeightsOfRun = field(default_factory=WeightsOfRun)


def export(argv: list[str]) -> None:
    """Export a finished run: `ace export run=DIR output=DIR`; `push=OWNER/NAME` publishes it on a model hub too."""
    settings = parse_settings(argv, ExportSettings)
    if settings.run is None and settings.push is None:
        raise ConfigError("run is not set: give a finished run folder as run=..., or push=OWNER/NAME for an old export")
    if settings.run is not None:
        from ace_dist.data.run_inputs import run_config

        run_config(Path(settings.run))  # says what is no run, before torch is imported
    from ace_dist.evaluate.export import export_run
    from ace_dist.evaluate.hub import check_repository, push_export

    output, source = Path(settings.output), settings.output
    if settings.push is not None:
        check_repository(settings.push)
    if settings.run is not None:
        export_run(Path(settings.run), output, settings.evaluation.interpolate)
    if settings.push is not None:
        print(f"{settings.push}: {push_export(output, settings.push, settings.private)}")
        source = settings.push
    print(f'{source}: load it with ace_dist.Classifier.from_pretrained("{source}")')
