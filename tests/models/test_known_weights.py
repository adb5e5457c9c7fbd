"""`ace weights get`: from a stand-in of the hub to files that configurations use: resumed, checked, licensed."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hub_server import ask_here, hub_server
from safetensors import safe_open
from small_weights import hf_clip_state, hf_timesformer, saved
from test_importing import official_names

from ace_dist import cli
from ace_dist.models.convert import known as known_weights
from ace_dist.models.convert.known import KNOWN, NON_COMMERCIAL
from ace_dist.models.convert.layouts import KINDS
from ace_dist.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CLIP = "openai/clip-vit-base-patch16"


@pytest.fixture(scope="module")
def clip_file():
    return saved(hf_clip_state())


@pytest.fixture
def hub(monkeypatch, tmp_path):

    with hub_server() as (hub, address):
        ask_here(monkeypatch, address, tmp_path / "cache")
        monkeypatch.setitem(KNOWN, "clip_b16", replace(KNOWN["clip_b16"], model=None))  # whose sizes are the real ones
        hub.address = address
        yield hub


@pytest.fixture
def get(tmp_path):
    return lambda name, *settings: cli.execute(["weights", "get", name, f"output={tmp_path / 'weights'}", *settings])


@pytest.fixture
def plain(hub, monkeypatch):
    """A known file on a plain server: `plain("lavila", data)`."""

    def serve(name, data):
        hub.plain["/file"] = data
        monkeypatch.setitem(KNOWN, name, replace(KNOWN[name], url=f"{hub.address}/file"))
        return data

    return serve


def test_a_mirror_from_the_command_line(clip_file, tmp_path):
    """HF_ENDPOINT is where files come from; they become what `model=timesformer_b16` reads."""
    for part in ("video", "text"):  # those of model=clip_b16 are there, at their real size
        (tmp_path / "weights").mkdir(exist_ok=True)
        (tmp_path / f"weights/clip_b16_{part}.safetensors").touch()
    with hub_server() as (hub, address):
        hub.files[CLIP] = {"pytorch_model.bin": clip_file}
        environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
        command = [sys.executable, "-m", "ace_dist", "weights", "get", "clip_b16"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "licence: MIT" in done.stdout and "model.text.weights=weights/clip_text.safetensors" in done.stdout
    assert f"/resolve/{KNOWN['clip_b16'].revision}/" in hub.asked("GET", CLIP)[0]
    digest = hashlib.sha256(clip_file).hexdigest()
    assert (tmp_path / "weights/downloads/SHA256SUMS").read_text() == f"{digest}  clip_b16.bin\n"
    for name in ("clip_text", "clip_image"):
        with safe_open(tmp_path / f"weights/{name}.safetensors", "pt") as file:
            assert file.metadata()["source_sha256"] == digest


def test_without_a_network_what_is_there_is_used(hub, get, clip_file, tmp_path, monkeypatch, capsys):
    """The download of before, and the hub's own cache, which other programs fill; nothing is asked for."""
    from huggingface_hub import constants, hf_hub_download

    hub.files[CLIP] = {"pytorch_model.bin": clip_file}
    hf_hub_download(CLIP, "pytorch_model.bin", revision=KNOWN["clip_b16"].revision, endpoint=hub.address)
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert get("clip_b16") == 0 and not hub.requests
    made = tmp_path / "weights/clip_image.safetensors"
    made.unlink()
    capsys.readouterr()
    assert get("clip_b16") == 0 and not hub.requests and made.is_file()
    assert "clip_text.safetensors is there and stays" in capsys.readouterr().out


def test_a_stopped_download_goes_on(hub, get, clip_file, tmp_path, capsys):
    """In the next process behind the bytes that are there, and in the same one when a connection breaks."""
    hub.files[CLIP] = {"pytorch_model.bin": clip_file}
    partial = tmp_path / "weights/downloads/clip_b16.bin.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(clip_file[:5000])
    hub.cut = 3000
    assert get("clip_b16") == 0
    ranges = [headers["Range"] for method, path, headers in hub.requests if method == "GET" and CLIP in path]
    assert ranges == ["bytes=5000-"] * 2 and not partial.exists()  # a break within the first 10 MB writes nothing
    assert "are there, the download goes on behind them" in capsys.readouterr().out


def test_another_file_under_the_same_name(hub, get, plain, tmp_path):
    """A part that is longer than the file, bytes that are not those of the hub, and a file that changed."""
    hub.files[CLIP] = {"pytorch_model.bin": b"x" * 1000}
    partial = tmp_path / "weights/downloads/clip_b16.bin.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"y" * 500)
    with pytest.raises(UserError, match=r"damaged on its way.*deleted; give the command again"):
        get("clip_b16")
    assert not list(partial.parent.iterdir())
    plain("timesformer_howto100m", b"z" * 100)
    (partial.parent / "timesformer_howto100m.pyth.partial").write_bytes(b"y" * 200)
    with pytest.raises(UserError, match=r"is emptied; give the command again"):
        get("timesformer_howto100m", "accept_licence=true")
    with pytest.raises(UserError, match="is text, which begins with"):  # the advice works
        get("timesformer_howto100m", "accept_licence=true")
    (partial.parent / "timesformer_howto100m.pyth").write_bytes(b"other")
    with pytest.raises(UserError, match=r"not the file of its first download.*SHA256SUMS"):
        get("timesformer_howto100m", "accept_licence=true")


def test_a_licence_that_restricts_is_accepted_first(hub, get, plain, tmp_path, capsys):
    plain("timesformer_howto100m", saved(official_names(hf_timesformer(head=7).state_dict())))
    with pytest.raises(UserError, match=r"CC-BY-NC 4\.0.*accept_licence=true"):
        get("timesformer_howto100m")
    assert not hub.requests and "licence: CC-BY-NC 4.0" in capsys.readouterr().out
    assert get("timesformer_howto100m", "accept_licence=true") == 0
    assert "model.video.embed_dim=512" in capsys.readouterr().out
    assert (tmp_path / "weights/timesformer_howto100m.safetensors").is_file()


def test_what_only_a_browser_gets_says_where_to_put_it(hub, get, tmp_path):
    with pytest.raises(UserError, match=r"ProcedureVRL.*save it as (\S+), and give the command again") as refusal:
        get("procedurevrl", "accept_licence=true")
    file = Path(str(refusal.value).partition("save it as ")[2].partition(",")[0])
    file.parent.mkdir(parents=True)
    state = official_names(hf_timesformer().state_dict()) | {"order_tfm.a": torch.zeros(1)}
    file.write_bytes(saved({"model_state": state}))
    assert get("procedurevrl", "accept_licence=true") == 0
    assert (tmp_path / "weights/timesformer.safetensors").is_file()


def test_a_page_instead_of_a_file(get, plain, tmp_path):
    """As Dropbox and Google Drive give when a link has expired: it is not kept, so that the next call asks again."""
    plain("lavila", b"<!doctype html><p>Log in")
    with pytest.raises(UserError, match="gave a web page and no weights"):
        get("lavila")
    assert not list((tmp_path / "weights/downloads").glob("lavila*"))
    plain("lavila", saved({}))
    with pytest.raises(UserError, match="its MD5 begins with .* and its authors' with d73a9c"):
        get("lavila")


@pytest.mark.parametrize(("words", "told"), [
    (["clip_b61"], "did you mean 'clip_b16'"), (["text4vis_k400"], r"say frames=T"),
    (["clip_b16", "frames=8"], "takes none"), (["clip_b16"], "knows no such repository"),
])  # fmt: skip
def test_mistakes_are_one_sentence(hub, get, words, told):
    with pytest.raises(UserError, match=told) as refusal:
        get(*words)
    assert "\n" not in str(refusal.value)


def test_offline_holds_for_files_from_elsewhere_too(hub, get, plain, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    plain("lavila", b"x")
    with pytest.raises(
        UserError, match=r"lavila cannot be downloaded.*HF_HUB_OFFLINE forbids.*save it as .*lavila\.pth"
    ):
        get("lavila")
    assert not hub.requests


def test_the_table_is_complete(capsys):
    """Without a name it is printed; its licences are those that the import writes, its addresses are whole."""
    assert cli.execute(["weights", "get"]) == 0
    printed = capsys.readouterr().out
    for name, known in KNOWN.items():
        assert name in printed and known.licence in printed and known.address in printed
        if known.kind in ("open_clip", "transformers", "internvideo2"):  # a whole model, whose licence its card says
            assert known.model and known.repository and (known.file is None) == (known.kind != "internvideo2")
            continue
        assert known.licence.split(" ")[0] in KINDS[known.kind].licence
        assert (NON_COMMERCIAL in known.licence) == ("non-commercial" in KINDS[known.kind].licence)
        assert (known.repository is None) == (known.revision is None) == (known.file is None)
    assert known_weights.__doc__ and "MIT" in printed
