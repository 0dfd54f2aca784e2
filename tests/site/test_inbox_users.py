"""The inbox on a site whose users have other keys."""

import json
import os
import subprocess
import sys

from tests.processes import ROOT
from tests.waiting import scaled


def test_pages_and_admin_work_with_uuids_as_keys_of_users():
    """Their tests pass with a user model whose primary key is a UUID, and whose names are in another field."""
    paths = sorted(str(path) for path in (ROOT / "tests/unit").glob("test_inbox_*.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths]
    env = {**os.environ, "TEST_SETTINGS": json.dumps({"AUTH_USER_MODEL": "testsite.UuidUser"})}

    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=scaled(60), check=False)

    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert len(paths) >= 3
