"""An export goes to a hub and comes back from it: against a stand-in on this machine that is asked what the hub is."""

import math
import shutil
from dataclasses import replace

import pytest
import torch
from hub_server import ask_here, hub_server

from ace_dist import Classifier, cli
from ace_dist.concepts import SynonymTrees
from ace_dist.config import load_config, resolve_path, to_yaml
from ace_dist.config.checks import check_config
from ace_dist.data.run_inputs import PATHS, replaced
from ace_dist.evaluate.export import comparison, portable
from ace_dist.models.build import build_model
from ace_dist.models.convert.exporting import save_encoders
from ace_dist.utils.errors import UserError
from ace_dist.utils.files import file_sha256, write_checksums, write_text

ID = "plant/line3"
VALIDATES = ["evaluation.every_steps=5", "evaluation.validation_share=0.2", "training.keep_best=true"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An export of an untrained model, with its card and with a file beside it that is nobody's business."""
    folder = tmp_path_factory.mktemp("out") / "exported"
    config = load_config(["experiment=demo"])
    save_encoders(build_model(config.model, config.seed), folder, config.dataset.clip.frames)
    SynonymTrees.load(resolve_path(config.dataset.synonyms)).save(folder / "synonyms.json")
    write_text(folder / "config.yaml", to_yaml(portable(config)))
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    write_checksums(folder, {str(path.relative_to(folder)): file_sha256(path) for path in files})
    write_text(folder / "README.md", "---\nlibrary_name: ace-dist\n---\n# ace on tabletop\n")
    write_text(folder / "notes.txt", "not for others")
    return folder


def test_an_export_names_no_place_of_the_machine_that_trained_it():
    """Every setting of a path, `init_from` and the folder of features too; its own trees are named."""
    config = replaced(load_config(["experiment=demo"]), {key: f"/home/ana/{key}" for key in (*PATHS, "run")})
    text = to_yaml(portable(config))
    assert "ana" not in text and "synonyms: synonyms.json" in text


def test_an_export_names_no_people():
    """Groups are people; what is refused without the groups that validate goes with them."""
    people = ("dataset.test_groups", "dataset.left_out_groups", "evaluation.validation_groups")
    config = replaced(
        load_config(["experiment=demo", "evaluation.validation_words=0.4", *VALIDATES]),
        {key: ["ana"] for key in people} | {"evaluation.validation_share": 0.0},
    )
    check_config(config)
    config = portable(config)
    check_config(config)
    assert "ana" not in to_yaml(config)
    share = load_config(["experiment=demo", *VALIDATES])
    assert portable(share).evaluation.every_steps == share.evaluation.every_steps


def test_a_card_says_how_the_encoders_compare():
    """By the learned temperature and bias; BIKE has no vector of a video."""
    for words, told in (
        ("method=ace", "temperature 0.1."), ("method=ace_sigmoid", "temperature 0.05, plus the bias -10."),
        ("method=bike", "which `Classifier` alone does"), ("prompts=procedurevrl", "sentences of `model.text.prompts`"),
    ):  # fmt: skip
        config = load_config(["experiment=demo", words, "method.temperature=0.1"])
        model = build_model(replace(config.model, init="random"), config.seed)
        if model.similarity.log_scale is not None:
            torch.nn.init.constant_(model.similarity.log_scale, math.log(2))
        assert told in comparison(config, model), words


def test_an_export_computes_without_the_kernels_of_a_gpu():
    own = {"model.video.trunk_precision": "fp8", "model.video.attention": "xformers"}
    video = portable(replaced(load_config(["experiment=demo"]), own)).model.video
    assert video.trunk_precision == "same" and video.attention == "auto"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    with hub_server() as (hub, address):
        ask_here(monkeypatch, address, tmp_path / "cache")
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in speaks LFS, which every hub does
        monkeypatch.setenv("HF_TOKEN", "hf_of_the_plant")
        hub.token = "hf_of_the_plant"
        yield hub


@pytest.fixture
def on_hub(hub, exported):
    """The export's files as the hub has them, to be changed."""
    hub.files[ID] = {
        str(path.relative_to(exported)): path.read_bytes() for path in exported.rglob("*") if path.is_file()
    }
    return hub.files[ID]


def same_model(classifier, folder):
    ours, theirs = classifier.model.state_dict(), Classifier.from_pretrained(folder).model.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in theirs) and ours.keys() == theirs.keys()


def test_an_export_goes_there_and_comes_back(hub, exported, capsys, monkeypatch):
    """The files of its checksums and its card, into a private repository; without a network the cache serves."""
    assert cli.execute(["export", f"output={exported}", f"push={ID}"]) == 0
    assert hub.created[ID]["visibility"] == "private" and 'from_pretrained("plant/line3")' in capsys.readouterr().out
    listed = {line.split("  ")[1] for line in (exported / "SHA256SUMS").read_text().splitlines()}
    assert set(hub.files[ID]) == listed | {"SHA256SUMS", "README.md"}
    assert same_model(Classifier.from_pretrained(ID), exported)

    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert same_model(Classifier.from_pretrained(ID), exported) and not hub.requests


def test_a_push_that_is_refused_leaves_the_export_and_says_how_to_go_on(hub, exported, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(
        UserError, match=r"HF_TOKEN must be a token.*ace export output=\S+ push=plant/line3` tries again"
    ):
        cli.execute(["export", f"output={exported}", f"push={ID}"])
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_plant")
    assert cli.execute(["export", f"output={exported}", f"push={ID}", "private=false"]) == 0
    assert hub.created[ID]["visibility"] == "public"


@pytest.mark.parametrize(("words", "told"), [
    (["push=no-owner"], "is not OWNER/NAME"), ([], "run is not set"), (["push=plant/line3"], "is no export"),
])  # fmt: skip
def test_what_is_no_export_is_not_pushed(hub, words, told, tmp_path):
    (tmp_path / "private.txt").write_text("x")
    with pytest.raises(UserError, match=told):
        cli.execute(["export", f"output={tmp_path}", *words])
    assert not hub.requests


def test_a_damaged_export_is_not_pushed(hub, exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "copy")
    (folder / "synonyms.json").write_text("{}")
    with pytest.raises(UserError, match=r"synonyms\.json is damaged"):
        cli.execute(["export", f"output={folder}", f"push={ID}"])
    assert not hub.requests


def test_no_pickle_comes_from_a_hub(hub, on_hub):
    """Neither one beside the export, which is not fetched, nor one on its list, nor a path out of the folder."""
    on_hub["pytorch_model.bin"] = b"pickle"
    Classifier.from_pretrained(ID)
    assert not hub.asked("GET", ".bin")
    whole = on_hub["SHA256SUMS"]
    for name in ("pytorch_model.bin", "../../config.json", "/etc/config.json", "video/*.json"):
        on_hub["SHA256SUMS"] = whole + f"{'0' * 64}  {name}\n".encode()
        shutil.rmtree(cache())
        hub.requests.clear()
        with pytest.raises(UserError, match="is no file of an export; nothing of it is read"):
            Classifier.from_pretrained(ID)
        assert [path for path in hub.asked("GET", ID) if "SHA256SUMS" not in path] == []


def test_a_file_that_is_not_the_listed_one_is_refused(on_hub):
    on_hub["synonyms.json"] = on_hub["synonyms.json"].replace(b"lift", b"sink")
    with pytest.raises(UserError, match=r"synonyms\.json is damaged"):
        Classifier.from_pretrained(ID)


def test_what_is_neither_a_folder_nor_on_the_hub(hub, on_hub):
    """A slip in a folder's name, a repository of something else, which is not downloaded, and one that is gated."""
    with pytest.raises(
        UserError, match="runs/exprted is neither a folder here nor an export on the hub.*knows no such"
    ):
        Classifier.from_pretrained("runs/exprted")
    on_hub.pop("SHA256SUMS")
    with pytest.raises(UserError, match="plant/line3 is neither a folder here nor an export on the hub"):
        Classifier.from_pretrained(ID)
    assert not hub.asked("GET", "safetensors")


def test_files_of_the_export_before_leave_the_hub(hub, on_hub, exported):
    """A calibration would be used with the new weights; what is of no export stays, such as a picture of its page."""
    on_hub["calibration.json"], on_hub["page.png"] = b"{}", b"png"
    assert cli.execute(["export", f"output={exported}", f"push={ID}"]) == 0
    assert "calibration.json" not in on_hub and "page.png" in on_hub and "video/model.safetensors" in on_hub


@pytest.mark.parametrize("name", ["attributes.txt", "tokenizer.json", "calibration.json", "rest.safetensors"])
def test_a_file_that_the_checksums_do_not_list_is_not_read(exported, tmp_path, capsys, name):
    """It may be of the export that was there before."""
    folder = shutil.copytree(exported, tmp_path / "copy")
    (folder / name).write_text("broken")
    assert same_model(Classifier.from_pretrained(folder), exported)
    assert f"{name} is not read: SHA256SUMS beside it does not list it" in capsys.readouterr().out


def cache():
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE
