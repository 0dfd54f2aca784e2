"""The shape of the package: which module may know which, and what a reader may rely on finding."""

import ast
import inspect
import re
import tomllib
from pathlib import Path

import pytest

import notifications

PACKAGE = Path(notifications.__file__).parent
ROOT = PACKAGE.parent

STOREYS = [
    {"exceptions", "conf", "topics", "messages", "frames", "client_address", "limits", "metrics", "logs", "credit"}
    | {"surrogates", "address", "mount", "signed", "tenants"}
    | {"history.position", "history.stamped", "history.store", "history.memory"}
    | {"cursor", "held", "backlog", "recent"},
    {"connections", "connecting", "resolver", "aio", "tasks", "signals"},
    {
        "wire",
        "pipeline",
        "history.__init__",
        "history.redis",
        "reconciler",
        "settlement",
        "lease",
        "health",
    }
    | {
        "bridge.__init__",
        "bridge.state",
        "broker.__init__",
        "broker.reconnect",
        "box",
        "carried",
        "loop_layer",
        "layers",
    },
    {"publisher", "positions", "forwarder", "listener", "tokens", "auth", "callbacks", "sessions"}
    | {"control", "credentials", "receivers", "sending"},
    {"connection.__init__", "connection.connection", "connection.transport"}
    | {"heartbeat", "pump", "delivery", "jobs", "closing", "access", "consumers"},
    {"routing", "middleware"},
]
"""From the ground up: a module imports from its own storey or below. Within one storey, no circle."""
RIM = {"__init__", "apps", "checks", "testing", "management", "templatetags", "protocol", "views"} | {
    "doctor",
    "exporter",
    "monitoring",
    "urls",
}
"""May import anything, and is imported by nothing below."""

MODULES = sorted(PACKAGE.rglob("*.py"))
LEAF_IO = {"redis", "channels", "channels_redis", "hiredis", "asyncio", "socket", "django.db"}
"""What a module without I/O has no use for."""


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports_of(path):
    """Yield the dotted name of everything that a file imports, relative imports written out."""
    package = ["notifications", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).rstrip(".")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def neighbours_of(path):
    """Name the modules of the package that a file imports."""
    known = {name_of(each) for each in MODULES}
    for imported in imports_of(path):
        head, *rest = imported.split(".")
        if head == "notifications":
            names = [".".join(rest[:length]) for length in range(len(rest), 0, -1)]
            yield next((name for each in names for name in (each, f"{each}.__init__") if name in known), "__init__")


def storey_of(name):
    (found,) = (number for number, storey in enumerate(STOREYS) if name in storey)
    return found


def is_at_the_rim(name):
    return name.split(".")[0] in RIM


inner = [path for path in MODULES if not is_at_the_rim(name_of(path))]


def test_the_finder_of_imports_finds_them(tmp_path, monkeypatch):
    """The tests below would pass on anything if this did not see every way to write an import."""
    monkeypatch.setattr("tests.test_architecture.PACKAGE", tmp_path)
    file = tmp_path / "consumers.py"
    file.write_text(
        "import os\nimport a.b as c\nfrom . import auth, frames\nfrom .conf import settings\n"
        "from notifications.topics import Topic\ndef f():\n    from project import x\n"
    )

    assert set(imports_of(file)) == {
        "os",
        "a.b",
        "notifications.auth",
        "notifications.frames",
        "notifications.conf.settings",
        "notifications.topics.Topic",
        "project.x",
    }


@pytest.mark.parametrize("path", inner, ids=name_of)
def test_imports_flow_one_way(path):
    """leaves ← connections ← subscription, history, layers ← publisher, listener, auth ← consumers ← routing."""
    name = name_of(path)
    too_high = {other for other in neighbours_of(path) if is_at_the_rim(other) or storey_of(other) > storey_of(name)}

    assert too_high == set()


def test_every_module_has_a_place():
    """A new module is given a storey here, or stands at the rim."""
    placed = set().union(*STOREYS)

    assert [name_of(path) for path in inner if name_of(path) not in placed] == []


def test_there_is_no_circle():
    """No module imports itself by way of others."""
    graph = {name_of(path): set(neighbours_of(path)) & {name_of(each) for each in inner} for path in inner}
    while free := [name for name, needs in graph.items() if not needs]:
        graph = {name: needs.difference(free) for name, needs in graph.items() if name not in free}

    assert graph == {}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_app_knows_nothing_of_the_demo_or_the_tests(path):
    """The package is reusable: it imports neither the demo site nor the tests."""
    assert {name.split(".")[0] for name in imports_of(path)}.isdisjoint({"project", "tests"})


@pytest.mark.parametrize("path", [path for path in inner if storey_of(name_of(path)) == 0], ids=name_of)
def test_leaves_do_no_input_or_output(path):
    """Leaves take data and return data: they import nothing that talks to anybody."""
    used = {name for name in imports_of(path) for io in LEAF_IO if name == io or name.startswith(f"{io}.")}

    assert used == set()


WITHOUT_TRANSPORT = {"connection", "closing", "heartbeat", "jobs", "limits"} | {
    "cursor",
    "credit",
    "delivery",
    "held",
    "pump",
    "reconciler",
}
"""What a WebSocket and any other transport share."""


@pytest.mark.parametrize(
    "path", [path for path in inner if name_of(path).split(".")[0] in WITHOUT_TRANSPORT], ids=name_of
)
def test_connections_and_deliveries_know_no_transport(path):
    """They import neither Channels nor a transport of ours, and write and read no event of ASGI."""
    imported = set(imports_of(path))
    texts = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]

    assert {name.split(".")[0] for name in imported}.isdisjoint({"asgiref", "channels"})
    assert {name.split(".")[1] for name in imported if name.startswith("notifications.")}.isdisjoint(
        {"consumers", "middleware", "routing"}
    )
    assert [text for text in texts if isinstance(text, str) and text.startswith("websocket.")] == []


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.read_text().strip() and path.stem != "apps"], ids=name_of
)
def test_every_module_says_what_it_is(path):
    """A module begins with a docstring of what it is for."""
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("name", notifications.__all__)
def test_the_public_api_is_documented(name):
    """Every public function and class, and each public method of it, has a docstring."""
    public = getattr(notifications, name)
    members = [
        member
        for key, member in vars(public).items()
        if inspect.isclass(public)
        and not key.startswith("_")
        and (callable(member) or isinstance(member, classmethod | property))
    ]

    assert inspect.getdoc(public)
    assert "Args" in public.__doc__ or not name.startswith("publish")
    assert [member for member in members if not inspect.getdoc(member)] == []


def test_the_public_api_is_complete_and_sorted():
    """What the package imports for others stands in __all__, and nothing else."""
    assert notifications.__all__ == sorted(notifications.__all__)
    assert {"publish", "publish_to_user", "publish_progress", "Topic", "PublishError"} <= set(notifications.__all__)


@pytest.mark.parametrize("name", ["publish", "publish_to_user", "publish_progress"])
def test_async_twins_take_the_same_arguments(name):
    """A twin is the sync function with ``a`` in front: same arguments, same defaults, same annotations."""
    function, twin = getattr(notifications, name), getattr(notifications, f"a{name}")

    assert inspect.signature(function) == inspect.signature(twin)
    assert inspect.iscoroutinefunction(twin)
    assert not inspect.iscoroutinefunction(function)


def test_the_package_is_typed():
    """Type checkers read our annotations: the marker is there and is packaged."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())

    assert (PACKAGE / "py.typed").exists()
    assert "py.typed" in settings["tool"]["setuptools"]["package-data"]["notifications"]


def test_every_dependency_says_what_it_is_for():
    """Each requirement in pyproject.toml has a comment behind it."""
    text = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    wanted = project["dependencies"] + [each for extra in project["optional-dependencies"].values() for each in extra]
    commented = re.findall(r'^\s+"([^"]+)",\s+#\s+\S+', text, re.MULTILINE)

    assert wanted
    assert [each for each in wanted if each not in commented] == []


def test_what_we_import_is_what_we_require():
    """Every foreign package that the app imports stands among its dependencies, or is the extra for metrics."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {
        re.match(r"[a-z0-9_-]+", each)[0].replace("-", "_")
        for each in project["dependencies"] + project["optional-dependencies"]["metrics"]
    }
    own_or_standard = {"notifications", "__future__", *__import__("sys").stdlib_module_names}
    used = {name.split(".")[0] for path in MODULES for name in imports_of(path)} - own_or_standard

    assert used - required <= {"asgiref"}  # Django's own dependency, for as long as there is Django
