"""What the guides of docs/how-to tell a reader to write: the blocks behind ``<!-- file: name -->``."""

import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GUIDES = ROOT / "docs/how-to"


def blocks(document: Path, mark: str) -> list[tuple[str, str]]:
    """Return what each block of code is called behind ``<!-- mark: name -->``, and its text."""
    pattern = rf"^<!-- {mark}(?:: (\S+))? -->\n```\w*\n(.*?)^```$"
    return re.findall(pattern, document.read_text(), re.DOTALL | re.MULTILINE)


def files_of(guide: str) -> dict[str, str]:
    """Return the files of a guide by their names."""
    found = blocks(GUIDES / f"{guide}.md", "file")
    assert found, f"{guide}.md has no files"
    return dict(found)


def command_of(guide: str) -> list[str]:
    """Return the words behind ``python`` of the one command that a guide runs."""
    [(_, text)] = blocks(GUIDES / f"{guide}.md", "run")
    python, *words = text.split()
    assert python == "python"
    return words


def write(guide: str, directory: Path) -> Path:
    """Write the files of a guide below a directory, add what it adds to others, and return the directory."""
    document = GUIDES / f"{guide}.md"
    files, added = blocks(document, "file"), blocks(document, "add")
    assert files or added, f"{guide}.md has no files"
    for name, text in files:
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for name, text in added:
        with (directory / name).open("a") as added_to:
            added_to.write(text)
    return directory


def start_project(directory: Path) -> Path:
    """
    Make a site by the steps of the README, with an app ``uploads``, and return its directory.

    It has the AUTHORIZE of docs/security.md, too.
    """
    directory.mkdir(exist_ok=True)
    for words in (["startproject", "mysite", "."], ["startapp", "uploads"]):
        subprocess.run([sys.executable, "-m", "django", *words], cwd=directory, env=environment(), check=True)
    readme = ROOT / "README.md"
    steps = dict(blocks(readme, "step") + blocks(ROOT / "docs/security.md", "step"))
    with (directory / "mysite/settings.py").open("a") as settings:
        settings.write(steps["settings"] + steps["topics"])
    (directory / "mysite/permissions.py").write_text(steps["authorize"])
    (directory / "mysite/asgi.py").write_text(steps["asgi"])
    [mounted] = re.findall(r"add `(path\(.*?\))` to `mysite/urls.py`", readme.read_text())
    with (directory / "mysite/urls.py").open("a") as urls:
        urls.write(f"\nfrom django.urls import include\nurlpatterns += [{mounted}]\n")
    return directory


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a newcomer's shell: nothing of this project's tests, but for where the package is."""
    ours = ("DJANGO_SETTINGS_MODULE", "TEST_SETTINGS", "DATABASE_PATH", "REDIS_URL")
    return {name: value for name, value in os.environ.items() if name not in ours} | {"PYTHONPATH": str(ROOT)} | more


def find_program(name: str) -> str:
    """Return the path of a program that ``make test`` installs where it can; skip without it, and fail in CI."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        message = f"{name} is not installed"
        if "CI" in os.environ:
            pytest.fail(message)
        pytest.skip(message)
    return found


def listens(port: int) -> bool:
    """Say whether somebody accepts connections at a port of this host."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def table(document: Path, mark: str) -> dict[str, list[str]]:
    """Return the rows of the table behind ``<!-- table: mark -->`` by their first cell, without code marks."""
    text = document.read_text().partition(f"<!-- table: {mark} -->\n")[2].partition("\n\n")[0]
    rows = [[cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines()[2:]]
    assert rows, f"{document.name} has no table {mark!r}"
    return {cells[0]: cells[1:] for cells in rows}
