"""What the guides of docs/how-to tell a reader to write: the blocks behind ``<!-- file: name -->``."""

import os
import re
import shutil
import socket
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GUIDES = ROOT / "docs/how-to"


def files_of(guide: str) -> dict[str, str]:
    """Return the files of a guide by their names."""
    text = (GUIDES / f"{guide}.md").read_text()
    found = re.findall(r"^<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found, f"{guide}.md has no files"
    return dict(found)


def write(guide: str, directory: Path) -> Path:
    """Write the files of a guide below a directory, and return it."""
    for name, text in files_of(guide).items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return directory


def find_program(name: str) -> str:
    """Return the path of a program that ``make test`` installs where it can; skip without it, and fail in CI."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        message = f"{name} is not installed"
        if "CI" in os.environ:
            pytest.fail(message)
        pytest.skip(message)
    return found


def free_port() -> int:
    """Return a port of this host that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def table(document: Path, mark: str) -> dict[str, list[str]]:
    """Return the rows of the table behind ``<!-- table: mark -->`` by their first cell, without code marks."""
    text = document.read_text().partition(f"<!-- table: {mark} -->\n")[2].partition("\n\n")[0]
    rows = [[cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines()[2:]]
    assert rows, f"{document.name} has no table {mark!r}"
    return {cells[0]: cells[1:] for cells in rows}
