"""An export on a model hub: published there, and fetched from there.

What leaves this machine and what comes in are the files of its `SHA256SUMS`, and the model card; a pickle is neither.
"""

import re
from pathlib import Path, PurePosixPath

from ace_dist.utils.errors import RunError
from ace_dist.utils.files import CHECKSUMS, check_checksums, read_checksums
from ace_dist.utils.hub import hub_errors

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")  # OWNER/NAME
CARD = "README.md"
READABLE = (".safetensors", ".json", ".yaml", ".txt")  # the kinds of file that an export has


def push_export(folder: Path, repository: str, private: bool) -> str:
    """Publish an export as OWNER/NAME on the hub, which is made when there is none; returns its address.

    Raises `RunError` when the folder is no whole export, or the hub refuses.
    """
    check_repository(repository)
    names = export_files(folder)
    check_checksums(folder, (), "export the run again")
    from huggingface_hub import HfApi

    hub = HfApi()
    with hub_errors(
        f"push={repository} failed", f"{folder} is whole: `ace export output={folder} push={repository}` tries again"
    ):
        page = hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=[*names, CHECKSUMS, CARD],
            delete_patterns=[f"*{kind}" for kind in READABLE],  # of an export that was there before
            commit_message="Export of ace-dist",
        )  # fmt: skip
    return str(page)


def exported_folder(source: str | Path, revision: str | None) -> Path:
    """The folder itself, or that of OWNER/NAME of the hub in its cache, fetched when it is not there yet."""
    if Path(source).is_dir() or not REPOSITORY.fullmatch(str(source)):
        return Path(source)
    from huggingface_hub import hf_hub_download, snapshot_download

    repository = str(source)
    with hub_errors(
        f"{repository} is neither a folder here nor an export on the hub",
        "give the folder that `ace export` wrote, or OWNER/NAME of a repository that `ace export push=` filled",
    ):
        sums = Path(hf_hub_download(repository, CHECKSUMS, revision=revision))
        names = export_files(sums.parent)
        return Path(snapshot_download(repository, revision=sums.parent.name, allow_patterns=[*names, CHECKSUMS]))


def export_files(folder: Path) -> list[str]:
    """The files of an export by its `SHA256SUMS`. Raises `RunError` for one that no export has."""
    names = list(read_checksums(folder))
    if "config.yaml" not in names:
        raise RunError(f"{folder} is no export: it has no {CHECKSUMS} with config.yaml; `ace export` makes one")
    for name in names:
        path = PurePosixPath(name)
        if (
            not re.fullmatch(r"[\w./-]+", name)
            or ".." in path.parts
            or path.is_absolute()
            or path.suffix not in READABLE
        ):
            raise RunError(f"{folder / CHECKSUMS} lists {name!r}, which is no file of an export; nothing of it is read")
    return names


def check_repository(repository: str) -> None:
    if not REPOSITORY.fullmatch(repository):
        raise RunError(f"push={repository} is not OWNER/NAME, such as push=acme/line3-actions")
