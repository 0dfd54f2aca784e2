"""What axe-core, from the packages of ``tests/js``, has to say about a page."""

import os
from pathlib import Path

import pytest
from playwright.sync_api import Page

AXE = Path(__file__).parent / "js/node_modules/axe-core/axe.min.js"


def violations(page: Page) -> list[str]:
    """
    Return each broken rule of accessibility with the elements that break it, those of shadow roots too.

    Skips the test where the packages are not installed, which ``tests/js/run`` does; in CI it fails.
    """
    if not AXE.exists():
        message = "axe-core is not there: tests/js/run installs it"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run().then(({ violations }) => violations)")
    return [f"{rule['id']}: {node['target']} {node['failureSummary']}" for rule in found for node in rule["nodes"]]
