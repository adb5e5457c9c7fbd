"""The explorer: what it answers against the classifier, and the page driven in a real headless browser."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from ports import free_port
from test_own_videos import render_video

from ace_dist.data.run_inputs import KEPT
from ace_dist.tools.explorer import drawing
from ace_dist.tools.explorer.page import Page
from ace_dist.tools.explorer.session import Explorer, LabelVotes
from ace_dist.utils.errors import UserError
from ace_dist.utils.files import file_sha256

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
WORLD = ("dataset.world.train_clips=16", "dataset.world.test_clips=36")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, launch):
    """The smallest tabletop run: pretrained encoders, one step, evaluated."""
    folder = tmp_path_factory.mktemp("explored")
    shards = f"dataset.shards={folder / 'shards'}"
    launch("build_shards", "experiment=demo", shards, *WORLD)
    launch(
        "train", "experiment=demo", shards, *WORLD, f"run={folder / 'run'}", "training.max_steps=1",
        "training.batch_size=4", "umask=077",
    )  # fmt: skip
    return folder / "run"


@pytest.fixture(scope="module")
def explorer(run_dir):
    return Explorer(run_dir)


def test_a_run_with_a_umask_is_its_owners_alone(run_dir):
    """Every file of the run folder, as its command said: `umask=077`."""
    assert not [path for path in (run_dir, *run_dir.rglob("*")) if path.stat().st_mode & 0o077]


def test_a_look_is_the_mean_of_the_votes(explorer):
    """Softmax over the labels of the mean cosine / τ, averaged over the views (`softmax_sum`); votes are cosines."""
    clip = explorer.test_clip(explorer.tests[0].id)
    words = explorer.synonyms(["spin block", "juggle balls", "lift mug"])
    look = explorer.look(clip, words)
    assert explorer.config.evaluation.view_fusion == "softmax_sum"
    unit = torch.nn.functional.normalize
    text = {label: unit(explorer.classifier.model.text(list(group)), dim=1) for label, group in words.items()}
    means = torch.stack([rows.mean(0) for rows in text.values()])
    with torch.no_grad():
        expected = (unit(clip.embeddings, dim=1) @ means.T / explorer.config.method.temperature).softmax(1).mean(0)
    found = {item.label: item for item in look}
    for label, probability in zip(words, expected.tolist(), strict=True):
        assert found[label].probability == pytest.approx(probability, abs=2e-4)
        votes = (unit(clip.embeddings, dim=1) @ text[label].T).mean(0)
        assert [phrase for phrase, _ in found[label].votes] == list(words[label])
        assert [cosine for _, cosine in found[label].votes] == pytest.approx(votes.tolist(), abs=1e-5)


def test_removing_a_word_changes_the_result_and_refusals_say_why(explorer):
    """A label of fewer words has another mean; impossible questions are refused by name."""
    clip = explorer.test_clip(explorer.tests[-1].id)
    words = {label: list(group) for label, group in explorer.synonyms(["spin block", "lift mug"]).items()}
    before = {item.label: item.probability for item in explorer.look(clip, words)}
    words["spin block"] = words["spin block"][1:]
    after = {item.label: item.probability for item in explorer.look(clip, words)}
    assert before["spin block"] != after["spin block"]
    for wrong, message in (
        ({"spin block": ["spin block"]}, "at least two labels"),
        ({"spin block": [], "lift mug": ["lift mug"]}, "'spin block' has no word left"),
        ({"spin block": ["turn it" * 40], "lift mug": ["lift mug"]}, "has 280 characters"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            explorer.look(clip, wrong)
    with pytest.raises(UserError, match="no clip 'nothing'"):
        explorer.test_clip("nothing")


def test_a_phrase_may_stand_for_two_labels(explorer):
    """As in trees that share a synonym, and in the run's own evaluation with them."""
    clip = explorer.test_clip(explorer.tests[0].id)
    look = explorer.look(clip, {"stir cup": ["stir cup", "agitate cup"], "shake cup": ["shake cup", "agitate cup"]})
    assert len(look) == 2 and all(len(item.votes) == 2 for item in look)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "write at least two labels"),
        (["spin block"], "write at least two labels"),
        (["spin block", "Spin_Block"], "'spin block' stands there twice"),
        ([f"spin block {number}" for number in range(10_000)], "10000 labels are more than the 200"),
        (["spin block", "x" * 10_000], "has 10000 characters"),
    ],
)
def test_labels_that_cannot_be_compared(explorer, labels, message):
    """Answered at once and in a sentence: ten thousand labels held the page for 45 s."""
    with pytest.raises(UserError, match=re.escape(message)):
        explorer.synonyms(labels)


def test_phrases_have_a_limit_too(explorer):
    words = {f"spin block {label}": [f"turn {label} {word}" for word in range(100)] for label in range(100)}
    with pytest.raises(UserError, match="10000 phrases are more than 3000"):
        explorer.look(explorer.test_clip(explorer.tests[0].id), words)


def test_a_clip_is_shown_among_the_labels_of_its_split(explorer):
    """Presets follow the clip, a visitor's own labels stay; nothing of the clip is refused."""
    page = Page(explorer)
    words = page.first_words()
    for test in (explorer.tests[0], explorer.tests[-1]):
        clip, sheet, _, look, _, words, text = page.choose(test.id, words)
        assert test.action in words and test.action in text.splitlines() and clip is not None
        assert "ace-look" in look and sheet.count("data:image/png;base64,") == 1
    own = page.typed_words("juggle balls\nthrow cup")
    assert page.choose(explorer.tests[0].id, own)[5] == own
    assert page.use_labels("one", None, own)[0] == own, "a refused text leaves the labels before"


def test_a_data_set_of_one_novel_action_opens(explorer, monkeypatch):
    """One label is no choice: the page begins with all of them, or with none where there is one alone."""
    for base, novel, first in ((2, 1, 3), (0, 1, 0), (1, 1, 2)):
        task = explorer.task
        classes = replace(task.classes, base=task.classes.base[:base], novel=task.classes.novel[:novel])
        monkeypatch.setattr(explorer, "task", replace(task, classes=classes))
        page = Page(explorer)
        assert len(page.first_words()) == first
        assert "Choose a test clip" in page.look(None, {})
        monkeypatch.undo()


def test_messages_show_no_folder_of_the_server(explorer):
    """A refusal names files, and not where they lie."""
    page = Page(explorer)
    run = explorer.run
    for text, shown in (
        (
            f"{run / 'results.json'} is missing; run ace evaluate run={run} again",
            "run/results.json is missing",
        ),
        ("/home/ann/trees.json has no node for 'x'", "trees.json has no node"),
        ("'/srv/my data/a b/trees.json' is broken", "trees.json"),
        ("dataset.shards=/mnt/x/shards lacks a/b", "dataset.shards=shards lacks a/b"),
    ):
        message = unescape(page.refusal(UserError(text)))
        assert shown in message and "/home" not in message and str(run.parent) not in message and "/srv" not in message


def test_a_long_upload_is_answered_with_what_the_page_can_do(explorer, tmp_path):
    """It has no fields for a start and an end."""
    render_video(tmp_path / "long.mp4", seconds=70, size=(32, 32), rate=2)
    with pytest.raises(UserError, match="cut out the part that shows it, at most 60 s, and upload that") as refusal:
        explorer.uploaded(tmp_path / "long.mp4")
    assert "start_s" not in str(refusal.value) and str(tmp_path) not in str(refusal.value)


def test_the_robustness_table_is_that_of_the_evaluation(explorer):
    """Ten runs for a clip: the predictions that `predictions.json` holds for it."""
    predictions = json.loads((explorer.run / "predictions.json").read_text())
    test = next(test for test in explorer.tests if not test.base)
    runs = explorer.robustness(explorer.test_clip(test.id))
    assert len(runs) == len(predictions["srt"]) == 10
    for run, stored in zip(runs, predictions["srt"], strict=True):
        expected = stored["probabilities"][stored["ids"].index(test.id)]
        assert [label for label, _ in run] == stored["classes"]
        assert [probability for _, probability in run] == pytest.approx(expected, abs=1e-3)


def test_drawings_escape_what_a_user_types():
    """Labels are text of a stranger's: none of it becomes markup."""
    evil = "<script>alert(1)</script>"
    html = drawing.look_html([LabelVotes(evil, 0.5, ((evil, 0.1),))])
    html += drawing.robustness_html([[(evil, 0.5), ("b", 0.5)]]) + drawing.message_html(evil)
    assert "<script" not in html and html.count("&lt;script&gt;") == 4
    sheet = drawing.contact_sheet(np.zeros((8, 48, 48, 3), np.uint8))
    assert sheet.shape == (2 * 144, 5 * 144, 3)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """Where the server keeps its temporary files."""
    return tmp_path_factory.mktemp("scratch")


@contextlib.contextmanager
def served(run_dir, scratch, *settings):
    """The address of a run's page, served by the launcher in a process of its own; SIGTERM leaves nothing of it."""
    port = free_port()
    command = [sys.executable, str(ROOT / "launchers" / "explore.py"), f"run={run_dir}", f"port={port}", *settings]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"TMPDIR": str(scratch)}
    ) as server:
        try:
            deadline = time.monotonic() + 120
            while socket.socket().connect_ex(("127.0.0.1", port)):
                assert server.poll() is None, server.stdout.read()
                assert time.monotonic() < deadline
                time.sleep(0.2)
            (folder,) = scratch.iterdir()
            assert folder.stat().st_mode & 0o777 == 0o700
            yield f"http://127.0.0.1:{port}"
            server.terminate()
            assert server.wait(60) == 128 + signal.SIGTERM
            assert not list(scratch.iterdir()), "temporary files are left"
            said = server.stdout.read()  # Gradio's own lines advise a public link
            assert f"open http://127.0.0.1:{port} in a browser" in said and "share" not in said
        finally:
            server.kill()


@pytest.fixture(scope="module")
def address(run_dir, scratch):
    with served(run_dir, scratch, "largest_upload_mb=1") as address:
        yield address


@pytest.fixture
def page(phone, address):
    """The served page on a phone."""
    phone.goto(address)
    return phone


def percents(page):
    """Label -> shown probability."""
    bars = page.locator("#ace-look .ace-bar")
    bars.first.wait_for()
    texts = [bars.nth(i).inner_text().split("\n") for i in range(bars.count())]
    return {parts[0].strip(): parts[-1].strip() for parts in texts}


def test_the_page_in_a_browser(page, tmp_path, scratch):
    """Upload, labels, a synonym removed and one added, bad and oversized files refused; nothing leaves the machine, and
    nothing of an upload stays in it."""
    page.locator(".ace-hint").wait_for()
    assert page.locator(".ace-error").count() == 0, "the page opens with an error"
    video = tmp_path / "my video ü.mp4"
    render_video(video, seconds=2.5, size=(64, 64), rate=12)
    chooser = page.locator("#ace-upload input[type=file]")
    chooser.set_input_files(str(video))
    page.get_by_text("uploaded: ").wait_for()
    page.locator("img.ace-sheet").wait_for()
    kept = [path for path in scratch.rglob("*") if path.is_file()]
    assert not kept, "the upload, its frames or an empty temporary file are left"
    page.locator("#ace-labels textarea").fill("spin block")
    page.locator("#ace-use").click()
    message = page.locator(".ace-error", has_text="at least two labels")
    message.wait_for()
    box = message.bounding_box()
    assert box["y"] >= 0 and box["y"] + box["height"] <= 844, "the message is off the screen"
    page.locator("#ace-labels textarea").fill("spin block\nlift mug\njuggle balls")
    page.locator("#ace-use").click()
    page.locator("#ace-look", has_text="juggle balls").wait_for()
    first = percents(page)
    assert set(first) == {"spin block", "lift mug", "juggle balls"}

    before = page.locator("#ace-look").inner_text()
    field = page.get_by_placeholder("another phrase for juggle balls")
    field.fill("throw <b>balls</b>")
    page.get_by_label("rotate block").uncheck()
    page.wait_for_function("t => document.querySelector('#ace-look').innerText != t", arg=before)
    assert field.input_value() == "throw <b>balls</b>", "a tick wiped what was being typed"
    field.press("Enter")
    page.locator("#ace-look", has_text="2 phrases").wait_for()
    assert page.locator("#ace-look b b").count() == 0, "a typed word became markup"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "the page is wider than a phone"

    for name, content, message in (
        ("no video.mp4", b"this is not a video", "cannot be read"),
        ("large.mp4", bytes(3 * 2**20), "large"),
    ):
        broken = tmp_path / name
        broken.write_bytes(content)
        page.get_by_label("Clear").first.click()
        page.locator("#ace-upload input[type=file]").set_input_files(str(broken))
        page.get_by_text(re.compile(message)).first.wait_for()
    assert page.foreign == [], f"requests to other machines: {page.foreign}"
    assert page.errors == []


LEAK = "http://leak.invalid"  # a request to it would be seen, and an alert would be a dialog
PAYLOADS = {
    "box": f"<img src={LEAK}/1 onerror=alert(1)>",
    "plate": "<script>alert(2)</script>",
    "pin": "</title></textarea></script><script>alert(3)</script>",
    "block": f"![a]({LEAK}/4) [b]({LEAK}/5)",
    "cup": '" onmouseover=alert(6) autofocus onfocus=alert(7) x="',
    "ring": "${alert(8)} {{constructor.constructor('alert(9)')()}}",
    "cone": f"<svg><style>@import '{LEAK}/10'</style><a href=javascript:alert(11)>",
    "wheel": f"<iframe src={LEAK}/12></iframe><link rel=stylesheet href={LEAK}/13>",
}


@pytest.fixture
def hostile(run_dir, tmp_path):
    """A run and shards of somebody who puts mark-up, scripts and addresses wherever a name stands."""
    shutil.copytree(run_dir, tmp_path / "run")
    shutil.copytree(run_dir.parent / "shards", tmp_path / "shards")
    files = (tmp_path / "shards" / "manifest.json", *(tmp_path / "run" / "inputs").glob("*.json"))
    for path in files:
        text = path.read_text()
        for name, payload in PAYLOADS.items() if path.name != "synonyms.json" else ():
            text = re.sub(f'(?<=[" ]){name}"', lambda _, payload=payload: f'{json.dumps(payload)[1:-1]}"', text)
        path.write_text(text)
    inputs = tmp_path / "run" / "inputs" / "inputs.json"  # who writes a run writes its checksums too
    content = json.loads(inputs.read_text())
    for key, name in KEPT.items():
        if key in content["files"] and (inputs.parent / name).is_file():
            content["files"][key]["sha256"] = file_sha256(inputs.parent / name)
    inputs.write_text(json.dumps(content))
    space = tmp_path / "run" / "concept_space.npz"
    arrays = dict(np.load(space))
    for part in ("phrases", "actions"):
        words = [str(phrase).rpartition(" ") for phrase in arrays[part]]
        arrays[part] = np.array([f"{verb} {PAYLOADS.get(name, name)}" for verb, _, name in words])
    np.savez(space, **arrays)
    config = tmp_path / "run" / "config.yaml"
    name = json.dumps(f"<img src={LEAK}/14 onerror=alert(14)> ![a]({LEAK}/15) </script>")
    text = config.read_text()
    assert "  name: tabletop\n" in text and "  name: ace\n" in text
    text = text.replace("  name: tabletop\n", f"  name: {name}\n").replace("  name: ace\n", f"  name: {name}\n")
    config.write_text(text.partition("\n")[2])  # without the checksum in its first line
    return tmp_path


def test_a_hostile_run_in_a_browser(hostile, phone, tmp_path_factory):
    """Clips, labels, words, the robustness test, the concept map, an upload: no request leaves, no script runs."""
    page, dialogs, stopped = phone, [], []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.on("requestfailed", lambda request: stopped.append(request.url) if request.failure == "csp" else None)
    scratch = tmp_path_factory.mktemp("hostile-scratch")
    with served(hostile / "run", scratch, f"dataset.shards={hostile / 'shards'}") as address:
        page.goto(address)
        page.locator("#ace-clip input").click()
        page.locator("[role=option]", has_text=PAYLOADS["box"]).first.click()
        page.locator("#ace-look", has_text=PAYLOADS["box"]).wait_for()
        for title in ("The Synonym Robustness Test", "The concepts before"):
            page.get_by_text(title).click()
        page.locator("svg.ace-map").nth(1).wait_for()
        page.locator("svg.ace-map circle").first.hover(force=True)
        page.locator("#ace-labels textarea").fill("\n".join(f"juggle {payload}" for payload in PAYLOADS.values()))
        page.locator("#ace-use").click()
        page.locator("#ace-look", has_text=f"juggle {PAYLOADS['plate']}").wait_for()
        video = hostile / "<img src=x onerror=alert(16)>.mp4"
        render_video(video, seconds=2.5, size=(64, 64), rate=12)
        page.locator("#ace-upload input[type=file]").set_input_files(str(video))
        page.get_by_text("uploaded: ").wait_for()
        assert page.locator(f"[src*='{LEAK}'], [href*='{LEAK}'], [src='x'], iframe").count() == 0, "a name is mark-up"
        assert page.foreign == []
        # Were a name to become mark-up after all, the policy would stop what it asks for.
        markup = "".join(payload for payload in PAYLOADS.values()) + f"<img src=x onerror=fetch('{LEAK}/17')>"
        page.evaluate("markup => document.body.insertAdjacentHTML('beforeend', markup)", markup)
        page.wait_for_timeout(500)
    assert dialogs == [] and set(page.foreign) == set(stopped) and f"{LEAK}/1" in stopped


def test_wrong_runs_and_ports_are_answered_in_a_sentence(launch, tmp_path):
    """No run, a folder that is none: what to do next, without a traceback."""
    for settings, words in (((), "run is not set"), ((f"run={tmp_path}",), "is not a run folder")):
        done = launch("explore", *settings, check=False)
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
