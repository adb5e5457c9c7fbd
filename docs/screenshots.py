"""Remakes the pictures of `docs/images` from the demo: `ace demo`, then `python docs/screenshots.py`.

`python docs/screenshots.py explorer` remakes those of the explorer alone, `report` those of the report.
Takes Chromium and playwright (`pip install playwright`). `first_picture.png` is the section "One clip, three wordings"
of the demo's report; every page is taken at the widths of a desk and of a phone, light and dark.
"""

import contextlib
import io
import itertools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.Image import Quantize
from playwright.sync_api import sync_playwright

from ace_dist.worlds.tabletop.procedures import write_videos
from ace_dist.worlds.tabletop.world import TabletopConfig

IMAGES = Path(__file__).parent / "images"
RUN, OTHER = Path("runs/demo"), Path("runs/demo-procvlr")
REPORT = RUN / "report.html"
PORT = 7865
WIDTHS = {"desk": 1280, "phone": 390}
TALLEST = 2600  # pixels of a page: its first screens


def keep(content: bytes, path: Path) -> None:
    """As a PNG of 256 colours: some that no other is near, so that no small mark loses its own, and some for frames."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    halves = (picture.quantize(128, how).getpalette() for how in (Quantize.MAXCOVERAGE, Quantize.MEDIANCUT))
    palette = Image.new("P", (1, 1))
    palette.putpalette([*itertools.chain.from_iterable(halves)])
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB", flush=True)


def first_picture(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": 1120, "height": 900}, device_scale_factor=1.6)
    page.goto(address)
    page.locator(".wordings").screenshot(path=IMAGES / "first_picture.png")
    page.close()


def screenshots(browser: Any, address: str, name: str) -> None:
    for device, width in WIDTHS.items():
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": width, "height": TALLEST}, color_scheme=scheme)
            page.goto(address)
            keep(page.screenshot(), IMAGES / f"{name}_{device}_{scheme}.png")
            page.close()


def explorer(browser: Any, address: str, video: str) -> None:
    """Its four pages, each as somebody has them before him after a press or two."""
    for device, width in WIDTHS.items():
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page.set_default_timeout(180_000)  # the first answer of a page starts workers
            page.goto(address)
            for name, prepare in (
                ("clips", clips),
                ("timeline", timeline),
                ("concepts", concepts),
                ("two_runs", two_runs),
            ):
                prepare(page, video)
                page.wait_for_timeout(1000)
                keep(page.screenshot(full_page=True), IMAGES / f"explorer_{name}_{device}_{scheme}.png")
            page.close()


def clips(page: Any, video: str) -> None:
    page.locator("#ace-look").wait_for()
    page.get_by_role("button", name="Synonym Robustness Test").click()
    page.locator("#ace-srt").wait_for()


def timeline(page: Any, video: str) -> None:
    page.get_by_role("tab", name="Timeline").click()
    page.get_by_label("A video of this machine").click()
    page.get_by_role("option", name=video).click()
    page.locator("#ace-timeline .ace-chips button").first.click()
    page.locator("#ace-timeline .ace-cells.thin").wait_for()


def concepts(page: Any, video: str) -> None:
    page.get_by_role("tab", name="Concepts").click()
    page.locator("svg.ace-map").nth(1).wait_for()
    page.locator("svg.ace-map path").last.hover(force=True)


def two_runs(page: Any, video: str) -> None:
    page.get_by_role("tab", name="Two runs").click()
    page.locator("#ace-both").wait_for()


@contextlib.contextmanager
def explored() -> Iterator[tuple[str, str]]:
    """The address of the explorer of the demo's runs, and a long video that it offers."""
    with tempfile.TemporaryDirectory() as folder:
        write_videos(Path(folder), TabletopConfig(), train=0, test=1)
        words = [f"run={RUN}", f"videos={folder}/videos", f"compare={OTHER}", f"port={PORT}"]
        with subprocess.Popen([sys.executable, "-m", "ace_dist", "explore", *words], stdout=subprocess.PIPE) as server:
            assert server.stdout
            next(line for line in server.stdout if line.startswith(b"open "))
            try:
                yield f"http://127.0.0.1:{PORT}", "job-test-000.mp4"
            finally:
                server.terminate()


def main(wanted: list[str]) -> None:
    IMAGES.mkdir(exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        if "report" in wanted:
            first_picture(browser, REPORT.resolve().as_uri())
            screenshots(browser, REPORT.resolve().as_uri(), "report")
        if "explorer" in wanted:
            with explored() as (address, video):
                explorer(browser, address, video)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:] or ["report", "explorer"])
