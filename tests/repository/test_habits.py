"""What contributors and the hosted CI go by says the same as the files that it repeats."""

import configparser
import itertools
import re
import runpy
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, SimpleNamespace

import pytest
from django.core.management import load_command_class

yaml = pytest.importorskip("yaml")  # whose environment is older than requirements.txt has none

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
JOBS = yaml.safe_load((GITHUB / "workflows/ci.yml").read_text())["jobs"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSIONS = (ROOT / "docs/versions.md").read_text()
SEEN = ("deploy", "docs", "notifications", "project")
DOCTOR = "manage.py notifications_doctor --json"


@pytest.fixture
def noxfile(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return what noxfile.py says, with the names of its sessions. The nox that reads it here only takes them down."""
    sessions: set[str] = set()

    def parametrize(name: str, values: list[str]) -> Callable[[FunctionType], FunctionType]:
        def decorate(function: FunctionType) -> FunctionType:
            function.marks = [f"({name}='{value}')" for value in values]
            return function

        return decorate

    def session(python: list[str]) -> Callable[[FunctionType], FunctionType]:
        def decorate(function: FunctionType) -> FunctionType:
            for version, mark in itertools.product(python, getattr(function, "marks", [""])):
                sessions.add(f"{function.__name__}-{version}{mark}")
            return function

        return decorate

    stand_in = SimpleNamespace(session=session, parametrize=parametrize, options=SimpleNamespace(), Session=object)
    monkeypatch.setitem(sys.modules, "nox", stand_in)
    said = runpy.run_path(str(ROOT / "noxfile.py"))
    skipped = {
        f"django-{python}(django='{django}')"
        for django, pythons in said["DJANGO_WITHOUT"].items()
        for python in pythons
    }
    return SimpleNamespace(pythons=said["PYTHONS"], sessions=sessions - skipped)


def runs_of(job: dict[str, object]) -> list[tuple[str, str]]:
    """Return the Python and the last command of each run of a job, with what its matrix fills in."""
    setup, *_ = (step["with"]["python-version"] for step in job["steps"] if "setup-python" in step.get("uses", ""))
    command = job["steps"][-1]["run"]
    matrix = dict(job.get("strategy", {}).get("matrix", {}))
    left_out = matrix.pop("exclude", [])
    found = []
    for values in itertools.product(*matrix.values()):
        chosen = dict(zip(matrix, values, strict=True))
        if chosen not in left_out:
            filled = [setup, command]
            for name, value in chosen.items():
                filled = [text.replace(f"${{{{ matrix.{name} }}}}", value) for text in filled]
            found.append(tuple(filled))
    return found


def test_hosted_ci_runs_the_matrix(noxfile: SimpleNamespace) -> None:
    """The hosted CI runs each session of noxfile.py, on its Python, and no other."""
    runs = [run for job in JOBS.values() for run in runs_of(job)]
    sessions = {
        found[1]: python for python, command in runs if (found := re.fullmatch('make matrix SESSION="(.*)"', command))
    }

    assert set(sessions) == noxfile.sessions
    assert [name for name, python in sessions.items() if f"-{python}" not in name] == []


def test_hosted_ci_runs_the_tests_and_the_documentation() -> None:
    """It runs what must pass before anything lands, on the Python that requirements.txt is meant for."""
    lowest = PROJECT["project"]["requires-python"].removeprefix(">=")

    assert runs_of(JOBS["test"]) == [(lowest, "make test")]
    assert runs_of(JOBS["docs"]) == [(lowest, "make docs")]


def test_hosted_ci_may_change_nothing() -> None:
    """A change of a stranger runs with a token that reads only, and each job ends."""
    workflow = yaml.safe_load((GITHUB / "workflows/ci.yml").read_text())

    assert workflow["permissions"] == {"contents": "read"}
    assert all(job["timeout-minutes"] <= 90 for job in JOBS.values())


def test_versions_are_those_of_the_matrix(noxfile: SimpleNamespace) -> None:
    """docs/versions.md names the Pythons of the matrix and rows of it; a classifier says what ran."""
    rows = [line.split("|")[1:-1] for line in VERSIONS.splitlines() if re.match(r"\| `\w+-3", line)]
    ran = {row[0].strip().strip("`") for row in rows}
    classified = [line.rpartition(" :: ")[2] for line in PROJECT["project"]["classifiers"] if " :: 3." in line]
    djangos = [line.rpartition(" :: ")[2] for line in PROJECT["project"]["classifiers"] if "Django :: " in line]

    assert f"Python {noxfile.pythons[0]} to {noxfile.pythons[-1]}" in " ".join(VERSIONS.split())
    assert ran
    assert ran <= noxfile.sessions
    assert classified == sorted({row[1].strip().rpartition(".")[0] for row in rows}, key=noxfile.pythons.index)
    assert set(djangos) == {row[2].strip().rpartition(".")[0] for row in rows}


def test_pre_commit_runs_the_pinned_ruff() -> None:
    """Whoever uses pre-commit gets the linter and the formatter that ``make lint`` runs."""
    [repository] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]

    assert f"ruff=={repository['rev'].removeprefix('v')}" in (ROOT / "requirements.txt").read_text().splitlines()
    assert [hook["id"] for hook in repository["hooks"]] == ["ruff-check", "ruff-format"]


def test_editors_are_told_what_the_linter_wants() -> None:
    """.editorconfig has the line length of ruff, and no file of the project breaks its rules of white space."""
    config = configparser.ConfigParser()
    config.read_string("[top]\n" + (ROOT / ".editorconfig").read_text())
    folders = [folder for folder in ROOT.iterdir() if folder.is_dir() and (folder / "__init__.py").is_file()]
    paths = [
        *ROOT.glob("*.md"),
        *ROOT.glob("*.toml"),
        *ROOT.glob("*.txt"),
        *(ROOT / "docs").rglob("*.md"),
        *(path for each in folders for path in each.rglob("*.py")),
    ]
    texts = {str(path): path.read_text() for path in paths if path.is_file() and path.stat().st_size}

    assert {str(ROOT / name) for name in ("README.md", "notifications/conf.py", "tests/conftest.py")} <= texts.keys()
    assert int(config["*.py"]["max_line_length"]) == PROJECT["tool"]["ruff"]["line-length"]
    assert [name for name, text in texts.items() if not text.endswith("\n") or "\r" in text] == []
    assert [name for name, text in texts.items() if re.search(r"[ \t]$", text, re.MULTILINE)] == []


def test_no_merge_is_left_half_done() -> None:
    """No file that users see has a conflict's markers; a template with them renders, and no linter reads it."""
    marker = re.compile(r"^(<{7} |={7}$|>{7} )", re.MULTILINE)
    paths = [path for folder in SEEN for path in (ROOT / folder).rglob("*") if path.is_file()]
    texts = {path: path.read_bytes().decode(errors="replace") for path in [*paths, *ROOT.glob("*.*")] if path.is_file()}

    assert len(paths) > 100
    assert [str(path.relative_to(ROOT)) for path, text in texts.items() if marker.search(text)] == []


@pytest.mark.parametrize("name", ["ISSUE_TEMPLATE/bug.yml", "ISSUE_TEMPLATE/idea.yml", "pull_request_template.md"])
def test_templates_ask_what_the_doctor_says(name: str) -> None:
    """Issues and pull requests are asked for the doctor's output, by a command that is there."""
    text = (GITHUB / name).read_text()
    _, command, *arguments = DOCTOR.split()
    parser = load_command_class("notifications", command).create_parser("manage.py", command)

    assert f"`python {DOCTOR}`" in " ".join(text.split())
    assert parser.parse_args(arguments).json is True


@pytest.mark.parametrize("name", ["bug", "idea"])
def test_issue_templates_are_forms(name: str) -> None:
    """Each form has a name, a description and fields with labels; what GitHub does not know it would not show."""
    form = yaml.safe_load((GITHUB / f"ISSUE_TEMPLATE/{name}.yml").read_text())

    assert set(form) == {"name", "description", "body"}
    for field in form["body"]:
        assert field["type"] in ("markdown", "textarea")
        assert field["attributes"]["value" if field["type"] == "markdown" else "label"]
