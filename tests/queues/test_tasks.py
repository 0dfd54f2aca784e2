"""django.tasks, and the backport for Django 5.2: the progress of a task, wherever it runs."""

from collections.abc import Callable
from importlib.util import find_spec

import pytest

from tests.queues.site import QueueSite, states

LIBRARY = "django.tasks" if find_spec("django.tasks") else "django_tasks"
pytest.importorskip(LIBRARY)
pytest.importorskip("django_tasks_db")

FILES = {
    "shop/tasks.py": f"""
from {LIBRARY} import task
from notifications import progress, track

@task
@progress("job:{{import_id}}")
def import_rows(import_id):
    for row in track(range(3), f"job:{{import_id}}"):
        pass
"""
}
BACKPORT = '"django_tasks",' if LIBRARY == "django_tasks" else ""
SETTINGS = f"""
INSTALLED_APPS += [{BACKPORT} "django_tasks_db"]
TASKS = {{"default": {{"BACKEND": "django_tasks_db.DatabaseBackend"}}}}
"""


def test_a_worker_of_the_database_backend_runs_tasks(make_site: Callable[..., QueueSite]) -> None:
    """The packages work with each other: a worker in another process does what was enqueued."""
    site = make_site(FILES, SETTINGS)
    site.manage("migrate", "-v", "0")
    with site.working("manage.py", "db_worker", "--no-startup-delay", "--no-reload", ready="Starting worker"):
        site.run("from shop.tasks import import_rows; import_rows.enqueue(7)")

        assert states(site.hear("job:7")) == ["running", "succeeded"]
