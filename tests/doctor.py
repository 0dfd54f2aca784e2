"""Runs of the doctor, and what they said."""

import json
from subprocess import CompletedProcess
from typing import Any

from notifications.doctor import ROAD, Finding, Level
from tests.processes import Site
from tests.waiting import wait_for

QUIET = {"TOPICS": {"upload": {"AUTHORIZE": "tests.testsite.permissions.may_watch"}}}
"""A site of which the system checks say nothing."""
SECRET = "s3cret-of-nobody"


class Report:
    """What one run of the doctor said."""

    def __init__(self, done: CompletedProcess[str]) -> None:
        assert "Traceback" not in done.stderr, done.stderr
        assert SECRET not in done.stdout + done.stderr
        self.returncode = done.returncode
        self.stderr = done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        self.broken: str | None = said["broken"]
        self.findings = [Finding(**finding) for finding in said["checks"]]
        assert said["healthy"] == (self.broken is None)
        assert {finding.check for finding in self.findings} >= set(ROAD)
        for finding in self.findings:
            assert finding.hint or finding.level in (Level.OK, Level.SKIPPED) or finding.check == "listeners"

    def of(self, check: str, level: str | None = None) -> str:
        """Return what a check said, with its hints."""
        return "\n".join(
            f"{finding.text} → {finding.hint}"
            for finding in self.findings
            if finding.check == check and level in (None, finding.level)
        )

    def levels(self, *levels: str) -> list[str]:
        return [finding.check for finding in self.findings if finding.level in levels]


def ask(site: Site, *arguments: str) -> Report:
    return Report(site.run("notifications_doctor", "--json", *arguments, seconds=40))


def start_listeners(site: Site, count: int = 2) -> list[Any]:
    """Start listeners and wait until one of them leads and all have reported."""
    listeners = [site.start_listener() for _ in range(count)]
    client = site.client()

    def reported() -> bool:
        states = client.hvals("notifications:listeners")
        return len(states) == count and any(b'"holder"' in state for state in states)

    wait_for(reported)
    return listeners
