"""The explorer: what it answers against the classifier, and the page driven in a real headless browser."""

import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_own_videos import render_video

from ace_dist.tools.explorer import drawing
from ace_dist.tools.explorer.session import Explorer, LabelVotes
from ace_dist.utils.distributed import free_port
from ace_dist.utils.errors import UserError

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
        "training.batch_size=4",
    )  # fmt: skip
    return folder / "run"


@pytest.fixture(scope="module")
def explorer(run_dir):
    return Explorer(run_dir)


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
        ({"spin block": ["turn it"], "lift mug": ["turn it"]}, "'turn it' votes for both 'spin block' and 'lift mug'"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            explorer.look(clip, wrong)
    with pytest.raises(UserError, match="no clip 'nothing'"):
        explorer.test_clip("nothing")


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
def address(run_dir):
    """The page of the run, served by the launcher in a process of its own."""
    port = free_port()
    command = [sys.executable, str(ROOT / "launchers" / "explore.py"), f"run={run_dir}", f"port={port}"]
    with subprocess.Popen(
        [*command, "largest_upload_mb=1"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        deadline = time.monotonic() + 120
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert server.poll() is None and time.monotonic() < deadline, server.stdout.read()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
        server.kill()


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


def test_the_page_in_a_browser(page, tmp_path):
    """Upload, labels, a synonym removed and one added, bad and oversized files refused; nothing leaves the machine."""
    video = tmp_path / "my video ü.mp4"
    render_video(video, seconds=2.5, size=(64, 64), rate=12)
    chooser = page.locator("#ace-upload input[type=file]")
    chooser.set_input_files(str(video))
    page.get_by_text("uploaded: ").wait_for()
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


def test_wrong_runs_and_ports_are_answered_in_a_sentence(launch, tmp_path):
    """No run, a folder that is none: what to do next, without a traceback."""
    for settings, words in (((), "run is not set"), ((f"run={tmp_path}",), "is not a run folder")):
        done = launch("explore", *settings, check=False)
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
