"""axe-core (https://github.com/dequelabs/axe-core) in a page of a browser test; it needs no network."""

from importlib.resources import files

import pytest

SERIOUS = ("serious", "critical")
SETTLED = (
    "() => document.getAnimations().every(one => one.playState != 'running' || one.effect.getTiming().iterations > 9)"
)


def assert_no_serious_fault(page):
    """As the page stands, in the light and in the dark."""
    pytest.importorskip("axe_playwright_python", reason="pip install axe-playwright-python")
    page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(SETTLED)  # colours may change slowly
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        faults = [
            f"{scheme}: {fault['help']}: {node['html'][:200]} ({node['failureSummary']})"
            for fault in found["violations"]
            if fault["impact"] in SERIOUS
            for node in fault["nodes"]
        ]
        assert found["passes"], "axe-core looked at nothing"
        assert not faults, "\n".join(faults)
