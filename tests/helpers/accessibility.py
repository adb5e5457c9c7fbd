"""axe-core (https://github.com/dequelabs/axe-core) in a page of a browser test; it needs no network."""

from importlib.resources import files

import pytest

SERIOUS = ("serious", "critical")
SETTLED = """async () => {  // twenty frames in a row in which no colour is on its way to another
    const moves = one => one.playState == "running" && one.effect.getTiming().iterations < 9;
    for (let still = 0; still < 20; still = document.getAnimations().some(moves) ? 0 : still + 1)
        await new Promise(requestAnimationFrame);
}"""


def assert_no_serious_fault(page):
    """As the page stands, in the light and in the dark."""
    pytest.importorskip("axe_playwright_python", reason="pip install axe-playwright-python")
    page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.evaluate(SETTLED)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        faults = [
            f"{scheme}: {fault['help']}: {node['html'][:200]} ({node['failureSummary']})"
            for fault in found["violations"]
            if fault["impact"] in SERIOUS
            for node in fault["nodes"]
        ]
        assert found["passes"], "axe-core looked at nothing"
        assert not faults, "\n".join(faults)
