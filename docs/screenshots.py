"""Remakes the pictures of `docs/images` from the demo: `ace demo`, then `python docs/screenshots.py`.

Takes Chromium and playwright (`pip install playwright`). `first_picture.png` is the section "One clip, three wordings"
of the demo's report; every page is taken at the widths of a desk and of a phone, light and dark.
"""

import io
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images"
REPORT = Path("runs/demo/report.html")
WIDTHS = {"desk": 1280, "phone": 390}
TALLEST = 2600  # pixels of a page: its first screens


def keep(content: bytes, path: Path) -> None:
    Image.open(io.BytesIO(content)).convert("RGB").save(path, optimize=True)
    print(path)


def first_picture(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": 1120, "height": 900}, device_scale_factor=1.6)
    page.goto(address)
    keep(page.locator(".wordings").screenshot(), IMAGES / "first_picture.png")
    page.close()


def screenshots(browser: Any, address: str, name: str) -> None:
    for device, width in WIDTHS.items():
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": width, "height": TALLEST}, color_scheme=scheme)
            page.goto(address)
            keep(page.screenshot(), IMAGES / f"{name}_{device}_{scheme}.png")
            page.close()


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium)
        first_picture(browser, REPORT.resolve().as_uri())
        screenshots(browser, REPORT.resolve().as_uri(), "report")
        browser.close()


if __name__ == "__main__":
    main()
