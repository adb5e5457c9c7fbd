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
from pathlib import Path

import numpy as np
import pytest
import torch
from accessibility import assert_no_serious_fault
from ports import free_port
from test_own_videos import render_video

from ace_dist.data.run_inputs import KEPT
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.tools.explorer import answer
from ace_dist.tools.explorer.clip_page import ClipPage, View
from ace_dist.tools.explorer.desk import Desk
from ace_dist.tools.explorer.long_videos import LongVideos, offered_videos
from ace_dist.tools.explorer.markup import asked, message_html
from ace_dist.tools.explorer.session import Explorer, LabelVotes, Look
from ace_dist.tools.explorer.timeline_page import TimelinePage
from ace_dist.utils.errors import UserError
from ace_dist.utils.files import file_sha256
from ace_dist.worlds.tabletop.procedures import write_videos
from ace_dist.worlds.tabletop.world import TabletopConfig

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
    look = explorer.look(clip, words).labels
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
    before = {item.label: item.probability for item in explorer.look(clip, words).labels}
    words["spin block"] = words["spin block"][1:]
    after = {item.label: item.probability for item in explorer.look(clip, words).labels}
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
    words = {"stir cup": ["stir cup", "agitate cup"], "shake cup": ["shake cup", "agitate cup"]}
    look = explorer.look(clip, words).labels
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


def test_a_changed_word_encodes_new_phrases_alone(explorer, jobs, monkeypatch):
    """On the timeline and of a clip; a CPU takes almost a second for the phrases of 40 labels."""
    encoded, build = [], DualEncoder.build_text_features
    monkeypatch.setattr(
        DualEncoder,
        "build_text_features",
        lambda self, phrases: encoded.extend(found := list(phrases)) or build(self, found),
    )
    videos = LongVideos(explorer, offered_videos(str(jobs)))
    page = TimelinePage(videos, Desk([explorer.run]))
    view = page.open(
        page.opening(), "fold towel\nlift mug", lambda: videos.open_offered(*videos.offered, lambda a, b: None)
    )
    page.html(view)
    every = {phrase for group in view.words.values() for phrase, _ in group}
    assert len(encoded) == len(set(encoded)) and set(encoded) <= every and "fold towel" in encoded
    encoded.clear()
    view = page.press(page.press(view, "label", "fold towel"), "add", "origami towel")
    assert encoded == ["origami towel"] and page.html(view)
    page.html(page.press(view, "word", "origami towel"))
    explorer.look(explorer.test_clip(explorer.tests[0].id), {"fold towel": ["fold towel"], "x": ["origami towel"]})
    assert encoded == ["origami towel"]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """A folder with one long video of a person at work."""
    folder = tmp_path_factory.mktemp("jobs")
    write_videos(folder, TabletopConfig(), train=0, test=1)
    return folder / "videos"


@pytest.fixture
def page_of(explorer):
    return ClipPage([explorer], Desk([explorer.run]))


def test_it_opens_with_an_answer_and_the_labels_follow_the_clip(explorer, page_of):
    """The first view is a clip of a novel action with its answer; presets hold the truth, a visitor's labels stay."""
    view = page_of.opening()
    assert not view.test.base and "ace-verdict" in page_of.answer(view)
    for test in (explorer.tests[0], explorer.tests[-1]):
        view = page_of.press(view, "clip", test.id)
        html = page_of.answer(view)
        assert test.action in view.words and "✓" not in html and " truth" in html
        assert html.count("data:video/webm") == 1 and ("never trained on" in html) == (not test.base)
    own = page_of.use_labels(view, "juggle balls\nthrow cup")
    assert page_of.press(own, "clip", explorer.tests[0].id).words == own.words
    with pytest.raises(UserError, match="at least two"):
        page_of.use_labels(own, "one")


def test_buttons_change_words_and_unknown_ones_are_refused(explorer, page_of):
    """Whatever a browser sends in the place of a button's request: a sentence, and no change."""
    view = page_of.opening()
    label, (phrase, *_) = next((label, group) for label, group in view.words.items() if len(group) > 1)
    view = page_of.press(view, "label", label)
    before = page_of.answer(view)
    view = page_of.press(view, "word", phrase[0])
    assert (phrase[0], False) in view.words[label] and page_of.answer(view) != before
    view = page_of.press(view, "add", "Fling_It")
    assert view.words[label][-1] == ("fling it", True)
    assert page_of.press(view, "label", "nothing of this page").label == label
    for do, value in (("clip", "../../etc/passwd"), ("delete", ""), ("__class__", "x"), ("add", "x" * 300)):
        with pytest.raises(UserError):
            page_of.press(view, do, value)
    for data in (None, [], "clip", {}, {"do": "clip"}, {"do": 1, "value": "x"}, {"do": "clip", "value": "x" * 5000}):
        with pytest.raises(UserError, match="load it again"):
            asked(data)
    assert page_of.gallery(page_of.press(view, "shelf", "9" * 30)) and page_of.press(view, "shelf", "-3")


def test_the_timeline_refuses_what_its_buttons_do_not_send(explorer, jobs):
    """Segments, files, words and labels from anywhere: a sentence, or the nearest that there is; no file is named."""
    videos = LongVideos(explorer, offered_videos(str(jobs)))
    page = TimelinePage(videos, Desk([explorer.run]))
    view = page.opening()
    with pytest.raises(UserError, match="upload a video first"):
        page.press(view, "segment", "0")
    view = page.open(view, "spin block\nlift mug", lambda: videos.open_offered(*videos.offered, lambda a, b: None))
    whole = page.html(view)
    for value in ("-1", "9" * 30, "1e3", "²", "../x", ""):
        assert 0 <= page.press(view, "segment", value).segment < len(view.timeline)
    for do, value in (("keep", ".csv"), ("open", "/etc/passwd"), ("add", "x" * 300), ("", "")):
        with pytest.raises(UserError):
            page.press(view, do, value)
    for ending in (".mp4", "", "/etc/passwd", ".srt/../../x"):
        with pytest.raises(UserError, match="no such file"):
            page.file(view, ending)
    with pytest.raises(UserError, match="10000 labels are more than"):
        page.use_labels(view, "\n".join(f"spin block {k}" for k in range(10_000)))
    with pytest.raises(UserError, match="no word left"):
        page.press(
            replace(view, words={**view.words, "spin block": [("spin", True)]}, label="spin block"), "word", "spin"
        )
    assert page.html(view) == whole


def test_a_meaningless_label_is_never_certain_without_a_word(explorer, page_of):
    """Words that no tree knows, and a best cosine below that of base clips: said beside the percentage."""
    view = page_of.use_labels(page_of.opening(), "asdf qwer\nKiste heben")
    assert "No synonym tree knows the verb of" in page_of.answer(view)
    look = Look((LabelVotes("a", 1.0, (("a", 0.1),)),), None, 0.1, 0.3, ())
    assert "None of these" in answer.verdict_html(look, 0.1) and "below 0.30" in answer.verdict_html(look, 0.1)
    assert "None of these" in answer.verdict_html(replace(look, floor=None, fits=False), 0.1)
    assert "None of these" not in answer.verdict_html(replace(look, cosine=0.4, fits=True), 0.1)


def test_a_browser_gets_films_that_are_made_here(explorer):
    """No byte of a stored clip: WebM of its pictures, whatever somebody put into the shards."""
    test = explorer.tests[0]
    stored, film = explorer.files.read(explorer.records[test.id]), explorer.test_clip(test.id).film
    assert film.startswith(b"\x1a\x45\xdf\xa3") and stored[4:8] == b"ftyp" and stored[-400:] not in film


def test_the_floor_is_what_base_clips_reach(explorer):
    explorer.measure_floor()
    assert -1 < explorer.floor < 1


def test_a_data_set_of_one_novel_action_opens(explorer, monkeypatch):
    """One label is no choice: the page begins with all of them, or with none where there is one alone."""
    for base, novel, first in ((2, 1, 3), (0, 1, 0), (1, 1, 2)):
        task = explorer.task
        classes = replace(task.classes, base=task.classes.base[:base], novel=task.classes.novel[:novel])
        monkeypatch.setattr(explorer, "task", replace(task, classes=classes))
        page = ClipPage([explorer], Desk([explorer.run]))
        view = page.opening()
        assert len(view.words) == first and page.gallery(view) and page.answer(view)
        monkeypatch.undo()
    assert "Choose" in page.answer(View({}))


def test_messages_show_no_folder_of_the_server(explorer):
    """A refusal names files, and not where they lie."""
    run = explorer.run
    desk = Desk([run])
    for text, shown in (
        (
            f"{run / 'results.json'} is missing; run ace evaluate run={run} again",
            "run/results.json is missing",
        ),
        ("/home/ann/trees.json has no node for 'x'", "trees.json has no node"),
        ("'/srv/my data/a b/trees.json' is broken", "trees.json"),
        ("dataset.shards=/mnt/x/shards lacks a/b", "dataset.shards=shards lacks a/b"),
    ):
        message = desk.refusal(UserError(text))
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
    runs, classes = explorer.robustness(explorer.test_clip(test.id), base=False)
    assert test.action in classes
    assert len(runs) == len(predictions["srt"]) == 10
    for run, stored in zip(runs, predictions["srt"], strict=True):
        expected = stored["probabilities"][stored["ids"].index(test.id)]
        assert [label for label, _ in run] == stored["classes"]
        assert [probability for _, probability in run] == pytest.approx(expected, abs=1e-3)


def test_drawings_escape_what_a_user_types():
    """Labels are text of a stranger's: none of it becomes markup."""
    evil = '"><script>alert(1)</script>'
    look = Look((LabelVotes(evil, 0.5, ((evil, 0.1),)),), True, 0.1, None, (evil,))
    html = answer.verdict_html(look, 0.1) + answer.bars_html(look, evil, evil, every=True)
    html += answer.words_html(evil, {evil: [(evil, True)]}, [look]) + message_html(evil)
    html += answer.robustness_html([[(evil, 0.5), ("b", 0.5)]], [evil, "b"], evil)
    assert "<script" not in html and '""><' not in html and html.count("&lt;script&gt;") >= 10


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
            deadline = time.monotonic() + 400
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
def address(run_dir, scratch, jobs):
    with served(run_dir, scratch, "largest_upload_mb=1", f"videos={jobs}", f"compare={run_dir}") as address:
        yield address


@pytest.fixture
def page(phone, address):
    """The served page on a phone."""
    phone.goto(address)
    return phone


UNNAMED = """() => [...document.querySelectorAll("button, input, select, textarea, video, img, [role=img]")]
    .filter(part => part.checkVisibility() && !(part.tagName == "IMG" && part.hasAttribute("alt")))
    .filter(part => !(part.getAttribute("aria-label") || part.innerText || part.title || part.labels?.length))
    .map(part => part.outerHTML.slice(0, 200))"""
REPEATED = """() => [...document.querySelectorAll("[id]")].map(part => part.id).filter(Boolean)
    .filter((id, i, all) => all.indexOf(id) < i)"""


def assert_readable(page):
    """A screen reader has a name for each control and picture, no two parts share an id, axe-core finds no fault."""
    assert page.evaluate(UNNAMED) == [] and page.evaluate(REPEATED) == []
    assert_no_serious_fault(page)


def percents(page):
    """Label -> shown probability."""
    bars = page.locator("#ace-look .ace-bars button")
    bars.first.wait_for()
    texts = [bars.nth(i).inner_text().split("\n") for i in range(bars.count())]
    return {parts[0].strip(): parts[-1].strip() for parts in texts}


def test_the_page_in_a_browser(page, tmp_path, scratch):
    """An answer at once, an upload, labels, a synonym switched off by keyboard and one added, bad and oversized files
    refused; nothing leaves the machine, and nothing of an upload stays in it."""
    page.locator("#ace-look .ace-verdict").wait_for()
    assert page.locator(".ace-message").count() == 0, "the page opens with an error"
    page.wait_for_function("document.querySelector('video').videoWidth > 0")  # the film plays under the policy
    film, verdict = page.locator(".ace-clip video").bounding_box(), page.locator(".ace-verdict").bounding_box()
    assert film["x"] + film["width"] <= verdict["x"] and verdict["y"] < film["y"] + film["height"], "not side by side"
    assert_readable(page)
    video = tmp_path / "my video ü.mp4"
    render_video(video, seconds=2.5, size=(64, 64), rate=12)
    page.locator("input[type=file]").first.set_input_files(str(video))
    page.get_by_text("Your video").wait_for()
    kept = [path for path in scratch.rglob("*") if path.is_file()]
    assert not kept, "the upload, its frames or an empty temporary file are left"
    labels, use = page.get_by_label("Actions to choose between"), page.get_by_role("button", name="Use these labels")
    labels.fill("spin block")
    use.click()
    message = page.get_by_role("alert").filter(has_text="at least two labels")
    message.wait_for()
    box = message.bounding_box()
    assert box["y"] >= 0 and box["y"] + box["height"] <= 844, "the message is off the screen"
    labels.fill("spin block\nlift mug\njuggle balls")
    use.click()
    page.locator("#ace-look", has_text="juggle balls").wait_for()
    assert set(percents(page)) == {"spin block", "lift mug", "juggle balls"}

    page.get_by_role("button", name=re.compile("^juggle balls")).first.click()
    field = page.get_by_label("another phrase for juggle balls")
    field.fill("throw <b>balls</b>")
    field.press("Enter")
    page.get_by_role("button", name="throw <b>balls</b>").wait_for()
    assert page.locator("#ace-look b b").count() == 0, "a typed word became markup"
    chip = page.get_by_role("button", name=re.compile("^juggle balls")).last
    field.fill("half a wo")
    chip.focus()
    page.keyboard.press("Space")
    page.locator(".ace-chips button[aria-pressed=false]", has_text="juggle balls").wait_for()
    assert page.evaluate("document.activeElement.getAttribute('data-do')") == "word", "the keyboard lost its place"
    assert field.input_value() == "half a wo", "a chip wiped what was being typed"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "the page is wider than a phone"

    for name, content, said in (
        ("no video.mp4", b"this is not a video", "cannot be read"),
        ("large.mp4", bytes(3 * 2**20), "large"),
    ):
        broken = tmp_path / name
        broken.write_bytes(content)
        page.locator("input[type=file]").first.set_input_files(str(broken))
        page.get_by_text(re.compile(said)).first.wait_for()
    assert page.foreign == [], f"requests to other machines: {page.foreign}"
    assert page.errors == []


def test_the_timeline_in_a_browser(page, jobs, tmp_path, scratch):
    """A video of the folder and an upload of it give one timeline; a word moves it; it is kept as files; of the upload
    nothing stays."""
    page.get_by_role("tab", name="Timeline").click()
    shown = page.locator("#ace-timeline")
    page.get_by_label("A video of this machine").click()
    page.get_by_role("option", name="job-test-000.mp4").click()
    shown.wait_for()
    assert "not calibrated" in shown.inner_text()
    segments = shown.locator(".ace-segments")
    found = segments.inner_text()
    chip, before = shown.locator(".ace-chips button").first, shown.locator(".ace-cells.thin")
    for pressed in ("false", "true"):  # off and on again
        chip.click()
        shown.locator(f".ace-chips li:first-child button[aria-pressed={pressed}]").wait_for()
    before.wait_for()
    page.locator("input[type=file]").nth(1).set_input_files(str(jobs / "job-test-000.mp4"))
    before.wait_for(state="detached")  # a new video has no timeline before
    assert segments.inner_text() == found
    assert not [path for path in scratch.rglob("*") if path.is_file()], "the upload is left"

    assert_readable(page)
    last = segments.locator("button").last
    last.focus()
    page.keyboard.press("Enter")
    page.locator(".ace-segments li:last-child button[aria-pressed=true]").wait_for()
    chip.click()
    shown.locator(".ace-chips button[aria-pressed=false]").first.wait_for()
    before.wait_for()
    for name, words in (("CSV", "video,start_s"), ("ELAN", "ANNOTATION_DOCUMENT"), ("Page", "data:image/jpeg")):
        with page.expect_download() as download:
            shown.get_by_role("button", name=name).click()
        assert download.value.suggested_filename.startswith("job-test-000.")
        assert words in Path(download.value.path()).read_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "the page is wider than a phone"

    broken = tmp_path / "no video.mp4"
    broken.write_bytes(b"this is not a video")
    page.locator("input[type=file]").nth(1).set_input_files(str(broken))
    page.get_by_role("alert").filter(has_text="no video.mp4").wait_for()
    assert segments.is_visible(), "a refused video took the one before away"
    assert page.foreign == [] and page.errors == []


def test_the_map_and_two_runs_in_a_browser(page):
    """The map says a phrase that is pointed at, zooms and colours; two runs answer the same clip."""
    page.get_by_role("tab", name="Concepts").click()
    maps = page.locator("svg.ace-map")
    maps.nth(1).wait_for()
    maps.first.locator("path").last.hover(force=True)
    page.locator(".ace-tip:visible").wait_for()
    assert_readable(page)
    whole = maps.first.get_attribute("viewBox")
    page.get_by_role("button", name="Closer: Before training").press("Enter")
    assert maps.first.get_attribute("viewBox") != whole
    page.locator(".ace-actions button[aria-pressed=true]").first.click()
    page.wait_for_function("document.querySelectorAll('.ace-actions [aria-pressed=true]').length == 7")
    page.get_by_role("tab", name="Two runs").click()
    page.locator(".ace-answer.two .ace-verdict:visible").nth(1).wait_for()
    assert page.locator(".ace-scores td").count() == 8
    assert_readable(page)
    assert page.foreign == [] and page.errors == []


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


HOSTILE_JOB = "<img src=x onerror=alert(18)>.mp4"
SECOND_RUN = "<img src=x onerror=alert(19)>"


@pytest.fixture
def hostile(run_dir, jobs, tmp_path):
    """Two runs, shards and a long video of somebody who puts mark-up, scripts and addresses wherever a name stands."""
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
    shutil.copytree(tmp_path / "run", tmp_path / SECOND_RUN)
    (tmp_path / "jobs").mkdir()
    shutil.copy(jobs / "job-test-000.mp4", tmp_path / "jobs" / HOSTILE_JOB)
    return tmp_path


def assert_text_alone(page):
    """No name of a stranger's became mark-up."""
    assert page.locator(f"[src*='{LEAK}'], [href*='{LEAK}'], [src='x'], iframe, [onerror], [onfocus]").count() == 0


def press_through_clips(page, labels, video):
    """A clip, the robustness test, labels, an upload."""
    page.locator(".ace-gallery button", has_text=PAYLOADS["box"]).first.click()
    page.locator("#ace-look", has_text=PAYLOADS["box"]).wait_for()
    page.get_by_role("button", name="Synonym Robustness Test").click()
    page.locator("#ace-srt").wait_for()
    page.get_by_label("Actions to choose between").fill(labels)
    page.get_by_role("button", name="Use these labels").click()
    page.locator("#ace-look", has_text=f"juggle {PAYLOADS['plate']}").wait_for()
    page.locator("input[type=file]").first.set_input_files(str(video))
    page.get_by_text("Your video").wait_for()
    assert_text_alone(page)


def press_through_the_timeline(page, labels, video):
    """A video of the folder, its segments, a word, a file, an upload."""
    page.get_by_role("tab", name="Timeline").click()
    page.get_by_label("Labels to find").fill(labels)
    page.get_by_label("A video of this machine").click()
    page.get_by_role("option", name=HOSTILE_JOB).click()
    shown = page.locator("#ace-timeline")
    shown.wait_for()
    shown.locator(".ace-segments button").last.click()
    shown.locator(".ace-segments li:last-child button[aria-pressed=true]").wait_for()
    field = shown.locator("form input")
    field.fill(PAYLOADS["cone"])
    field.press("Enter")
    shown.locator(".ace-chips button", has_text="import").first.wait_for()
    shown.locator(".ace-cells.thin").wait_for()
    with page.expect_download() as download:
        shown.get_by_role("button", name="CSV").click()
    assert download.value.suggested_filename.endswith(".csv")
    page.locator("input[type=file]").nth(1).set_input_files(str(video))
    shown.locator(".ace-cells.thin").wait_for(state="detached")
    assert_text_alone(page)


def press_through_the_map(page):
    page.get_by_role("tab", name="Concepts").click()
    maps = page.locator("svg.ace-map")
    maps.nth(1).wait_for()
    for mark in maps.first.locator("path").all()[-3:]:
        mark.hover(force=True)
        page.locator(".ace-tip:visible").wait_for()
        mark.click(force=True)
    page.locator(".ace-actions button[aria-pressed=true]", has_text=PAYLOADS["plate"]).first.click()
    page.wait_for_function("document.querySelectorAll('.ace-actions [aria-pressed=true]').length == 7")
    assert_text_alone(page)


def press_through_two_runs(page):
    page.get_by_role("tab", name="Two runs").click()
    page.locator(".ace-answer.two .ace-verdict:visible").nth(1).wait_for()
    page.locator(".ace-scores th", has_text=SECOND_RUN).wait_for()
    page.locator(".ace-gallery button:visible", has_text=PAYLOADS["plate"]).first.click()
    page.locator("#ace-both .ace-clip", has_text=PAYLOADS["plate"]).wait_for()
    assert_text_alone(page)


def test_a_hostile_run_in_a_browser(hostile, phone, tmp_path_factory):
    """On every page no request leaves and no script runs."""
    page, dialogs, stopped = phone, [], []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.on("requestfailed", lambda request: stopped.append(request.url) if request.failure == "csp" else None)
    scratch = tmp_path_factory.mktemp("hostile-scratch")
    settings = f"dataset.shards={hostile / 'shards'}", f"compare={hostile / SECOND_RUN}", f"videos={hostile / 'jobs'}"
    labels = "\n".join(f"juggle {payload}" for payload in PAYLOADS.values())
    video = hostile / "<img src=x onerror=alert(16)>.mp4"
    render_video(video, seconds=2.5, size=(64, 64), rate=12)
    with served(hostile / "run", scratch, *settings) as address:
        page.goto(address)
        press_through_clips(page, labels, video)
        press_through_the_timeline(page, labels, video)
        press_through_the_map(page)
        press_through_two_runs(page)
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
