"""Workers that come, go, and share the work."""

import hashlib
from pathlib import Path

import pytest

from tests.demo_site import end_worker, manage, rows, site_without_redis, start_worker, wait_until

CREATE = """
import uuid
from django.contrib.auth.models import User
from django.core.files.base import ContentFile
from project.uploads.models import Upload
owner, batch_id = User.objects.create_user("owner"), uuid.uuid4()
for n in range({count}):
    Upload.objects.create(
        owner=owner, batch_id=batch_id, name=f"{{n}}.bin", size={size}, file=ContentFile(bytes({size}), "x")
    )
"""


@pytest.fixture
def site(tmp_path: Path) -> dict[str, str]:
    return site_without_redis(tmp_path)


def uploads(env: dict[str, str], columns: str, condition: str = "1") -> list[tuple[object, ...]]:
    return rows(env, "uploads_upload", columns, condition)


def test_upload_of_a_killed_worker_is_taken_up_again(site: dict[str, str]):
    """After kill -9 of its worker an upload is analysed by the next, and its percentage does not go back."""
    manage(site, "shell", "-v", "0", "-c", CREATE.format(count=1, size=100_000))
    victim = start_worker(site, DEMO_PACE="0.05")
    wait_until(lambda: uploads(site, "1", "progress_percent > 20"), "a bar in motion")
    victim.kill()
    victim.communicate()
    [(reached,)] = uploads(site, "progress_percent")

    heir = start_worker(site, DEMO_PACE="600")
    wait_until(lambda: uploads(site, "1", "attempts = 2"), "the second attempt")
    assert uploads(site, "1", f"progress_percent >= {reached}")
    assert "given back" in end_worker(heir)
    assert uploads(site, "status, attempts") == [("pending", 1)]
    last = start_worker(site)
    wait_until(lambda: uploads(site, "1", "status = 'completed'"), "the end")
    end_worker(last)

    assert uploads(site, "progress_percent, sha256") == [(100, hashlib.sha256(bytes(100_000)).hexdigest())]


INTERRUPTED = """
import os, signal, threading
from django.core.management import call_command
from project.uploads.management.commands import run_worker

class Event(threading.Event):
    def wait(self, timeout=None):
        with self._cond:  # as any Event that begins to wait
            os.kill(os.getpid(), signal.SIGTERM)
        return super().wait(timeout)

class Worker(run_worker.Worker):
    def __init__(self):
        self._stop = Event()

run_worker.Worker = Worker
call_command("run_worker")
"""


def test_worker_stops_in_whatever_moment_it_is_asked(site: dict[str, str]):
    """A signal that arrives while the worker begins to wait does not hold it for ever."""
    manage(site, "shell", "-v", "0", "-c", INTERRUPTED)


def test_claim_of_a_time_to_come_is_void(site: dict[str, str]):
    """A worker died, and the clock was set back by an hour: its upload does not wait for an hour."""
    claimed = "timezone.now() + timedelta(hours=1)"
    change = f"Upload.objects.update(status='analyzing', attempts=1, claim=uuid.uuid4(), claimed_until={claimed})"
    imports = "\nfrom datetime import timedelta\nfrom django.utils import timezone\n"
    manage(site, "shell", "-v", "0", "-c", CREATE.format(count=1, size=10) + imports + change)

    worker = start_worker(site)
    wait_until(lambda: uploads(site, "1", "status = 'completed'"), "the end")
    end_worker(worker)

    assert uploads(site, "attempts") == [(2,)]


def test_file_that_kills_its_workers_is_given_up(site: dict[str, str]):
    """A file over which three workers died fails, instead of killing a fourth."""
    manage(site, "shell", "-v", "0", "-c", CREATE.format(count=1, size=10) + "Upload.objects.update(attempts=3)")
    worker = start_worker(site)

    wait_until(lambda: uploads(site, "1", "status = 'failed'"), "the failure")
    end_worker(worker)

    assert uploads(site, "error_message") == [("3 workers died over this file.",)]


def test_two_workers_share_the_work(site: dict[str, str]):
    """Each upload is taken by one worker only, and none is forgotten."""
    manage(site, "shell", "-v", "0", "-c", CREATE.format(count=20, size=10))
    # Of a worker that a busy machine holds up for a second, the other would take what it has.
    workers = [start_worker(site, DEMO_PACE="0.01", CLAIM_LEASE="30") for _ in range(2)]

    wait_until(lambda: len(uploads(site, "1", "status = 'completed'")) == 20, "all completed")
    outputs = [end_worker(worker) for worker in workers]

    assert set(uploads(site, "attempts")) == {(1,)}
    assert sum(output.count("completed: ") for output in outputs) == 20
