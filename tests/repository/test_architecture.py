"""The structure of the package: which room may import which, and what readers may rely on. docs/architecture.md."""

import ast
import inspect
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

import notifications
from tests.source import nodes_of

PACKAGE = Path(notifications.__file__).parent
ROOT = PACKAGE.parent

FLOORS = [
    {"address", "exceptions", "messages", "metrics", "mount", "protocol", "signed"},
    {"aio", "conf", "logs", "signals", "tasks", "tenants", "tokens", "topics"},
    {"broker"},
    {"channel_layer", "history", "sending"},
    {"access", "bridge", "jobs", "layers", "positions", "progress", "publisher", "reporting", "tracking"},
    {"delivery"},
    {"connection"},
    {"asgi", "consumers", "http", "middleware", "routing", "uvicorn"},
]
"""From the ground up. A room is a folder, or a module beside them; it imports from its own floor or from below."""
RIM = {
    "apps",
    "checks",
    "contrib",
    "devserver",
    "doctor",
    "inbox",
    "management",
    "monitoring",
    "schema",
    "templatetags",
    "testing",
    "urls",
    "views",
}
"""Rooms that may import anything. No room of a floor imports them."""
OUTSIDE = {"contrib", "inbox"}
"""Rooms that a site may leave out: nothing else imports them, not even the rim."""

TRANSPORTS = {f"notifications.{room}" for room in FLOORS[-1]}
ASGI = {"channels", "channels_redis", "asgiref", "daphne", "uvicorn", "django.core.asgi", "django.core.handlers.asgi"}
IO = {"redis", "channels", "channels_redis", "hiredis", "asyncio", "socket", "django.db", "subprocess"}
PURE = [
    "address.py",
    "bridge/backlog.py",
    "bridge/replay.py",
    "connection/limits.py",
    "delivery/buffer.py",
    "delivery/cursor.py",
    "delivery/flow_control.py",
    "exceptions.py",
    "history/changes.py",
    "history/inlet.py",
    "history/position.py",
    "history/shares.py",
    "history/stamped.py",
    "messages.py",
    "metrics.py",
    "protocol/frames.py",
    "reporting/counts.py",
    "reporting/sharing.py",
    "reporting/values.py",
    "topics.py",
]
"""What takes data and returns data, and so can be tested without anything that runs."""

KNOW_REDIS = {
    "broker": "our ways to Redis",
    "history/redis.py": "the store of histories",
    "doctor": "asks Redis what it is and what the account may do",
    "bridge/lease.py": "the lease is a key in Redis, which a script compares",
    "bridge/status.py": "the listeners' states are a hash in Redis",
    "access/callbacks.py": "a site's own Redis that is away is no answer",
    "testing/capture.py": "plays a Redis that is away",
}
"""The modules that may import redis-py or name a command, and why."""
COMMANDS = {
    *("DEL", "EVAL", "EVALSHA", "EXPIRE", "HDEL", "HGET", "HGETALL", "HSET", "PEXPIRE", "PING", "PSUBSCRIBE", "PTTL"),
    *("PUBLISH", "PUNSUBSCRIBE", "SADD", "SMEMBERS", "SPUBLISH", "SSUBSCRIBE", "SUBSCRIBE", "UNSUBSCRIBE", "XADD"),
    *("XRANGE", "XREAD"),
}

CONTRIB = {"celery": {"celery", "billiard"}, "dramatiq": {"dramatiq"}, "rq": {"rq"}}
"""What each module of ``contrib/`` imports that only sites have which use it: its library, and what that brings."""

MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}


def dotted(path):
    """Return the dotted name of a module, which for a folder's ``__init__.py`` is the folder's."""
    return ".".join(["notifications", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")


NAMES = {dotted(path): path for path in MODULES.values()}


@cache
def imports_of(path):
    """List the dotted name of everything that a file imports, relative imports written out."""
    package = ["notifications", *path.relative_to(PACKAGE).parent.parts]
    found = []
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).rstrip(".")
            found += [f"{module}.{alias.name}" for alias in node.names]
    return found


def texts_of(path):
    """Return every literal text of a file."""
    return {node.value for node in nodes_of(path) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@cache
def modules_of(path):
    """Name the modules of the package that a file imports, itself and the package's own front left out."""
    named = {name if name in NAMES else name.rpartition(".")[0] for name in imports_of(path)}
    return (named & NAMES.keys()) - {"notifications", dotted(path)}


def room_of(name):
    """``notifications.bridge.lease`` is in the room ``bridge``."""
    return name.split(".")[1] if "." in name else "__init__"


def in_room(room):
    """Return the files of a room that is a folder."""
    return [path for name, path in MODULES.items() if name.startswith(f"{room}/")]


def floor_of(room):
    return next((number for number, floor in enumerate(FLOORS) if room in floor), len(FLOORS))


def reach_of(path):
    """Return all modules of the package that a file needs, by way of others too, itself among them."""
    seen, todo = set(), [dotted(path)]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += modules_of(NAMES[name])
    return seen


def within(name, packages):
    """Whether a dotted name is one of some packages, or in one of them."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def findings(look, paths):
    """Return what is found in each of some files, by the file's name, where anything is."""
    return {path.relative_to(PACKAGE).as_posix(): there for path in paths if (there := sorted(look(path)))}


def circle(graph):
    """Return what is left of a graph when whatever needs nothing of the rest is taken away, again and again."""
    while free := [name for name, needs in graph.items() if not needs]:
        graph = {name: needs.difference(free) for name, needs in graph.items() if name not in free}
    return graph


def test_the_finder_of_imports_finds_them(tmp_path, monkeypatch):
    """The tests below would pass on anything if this did not see every way to write an import."""
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    (tmp_path / "bridge").mkdir()
    file = tmp_path / "bridge/lease.py"
    file.write_text(
        "import os\nimport a.b as c\nfrom . import backlog\nfrom .. import conf\nfrom ..conf import settings\n"
        "from notifications.topics import Topic\ndef f():\n    from project import x\n"
    )

    assert set(imports_of(file)) == {
        "os",
        "a.b",
        "notifications.bridge.backlog",
        "notifications.conf",
        "notifications.conf.settings",
        "notifications.topics.Topic",
        "project.x",
    }


def test_circles_are_found():
    """What needs itself by way of others is left over, and what needs that."""
    assert circle({"a": {"b"}, "b": set(), "c": {"a"}}) == {}
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()})) == {"a", "b", "c"}


def test_every_room_has_a_floor():
    """A new room is given a floor here, or stands at the rim; what is gone is taken out."""
    rooms = {room_of(name) for name in NAMES} - {"__init__"}

    assert rooms == set().union(*FLOORS, RIM - OUTSIDE, OUTSIDE & rooms)


def test_imports_flow_one_way():
    """A room imports from its own floor or from below, and never from the rim."""

    def higher(path):
        own = floor_of(room_of(dotted(path)))
        return {name for name in modules_of(path) if floor_of(room_of(name)) > own}

    assert findings(higher, [path for name, path in NAMES.items() if room_of(name) not in RIM | {"__init__"}]) == {}


def test_there_is_no_circle():
    """Neither a module nor a room imports itself by way of others."""
    modules = {name: set(modules_of(path)) for name, path in NAMES.items() if name != "notifications"}
    rooms = {}
    for name, needs in modules.items():
        rooms.setdefault(room_of(name), set()).update(room_of(other) for other in needs)

    assert circle(modules) == {}
    assert circle({room: needs - {room} for room, needs in rooms.items()}) == {}


def test_the_app_knows_nothing_of_the_demo_or_the_tests():
    """The package is reusable: it imports neither the demo site nor the tests."""

    def foreign(path):
        return {name for name in imports_of(path) if within(name, ["project", "tests"])}

    assert findings(foreign, MODULES.values()) == {}


def test_what_a_site_may_leave_out_is_imported_by_nothing():
    """Neither the integrations in ``contrib/`` nor the inbox are needed by anything else."""

    def outside(path):
        others = {room_of(name) for name in imports_of(path) if within(name, ["notifications"])}
        return OUTSIDE & others - {room_of(dotted(path))}

    assert findings(outside, MODULES.values()) == {}


def test_connections_know_no_transport():
    """What a connection is and what it is delivered knows no ASGI: another transport is a room beside the consumer."""

    def of_a_transport(path):
        used = {name for name in [*imports_of(path), *modules_of(path)] if within(name, ASGI | TRANSPORTS)}
        return used | {text for text in texts_of(path) if text.startswith(("websocket.", "http."))}

    assert findings(of_a_transport, [*in_room("connection"), *in_room("delivery")]) == {}


def test_pure_modules_do_no_input_or_output():
    """They import nothing that talks to anybody or waits, and neither does what they import."""

    def impure(path):
        reach = [(module, name) for module in reach_of(path) for name in imports_of(NAMES[module])]
        return {f"{module} imports {name}" for module, name in reach if within(name, IO)}

    assert findings(impure, [MODULES[name] for name in PURE]) == {}


def test_few_know_the_commands_of_redis():
    """Another Redis, such as a cluster, is another way in ``broker/``: nothing else names a command."""

    def of_redis(path):
        return {name for name in imports_of(path) if within(name, ["redis", "hiredis"])} | COMMANDS & texts_of(path)

    others = [path for name, path in MODULES.items() if not {name, name.split("/")[0]} & KNOW_REDIS.keys()]
    assert findings(of_redis, others) == {}


def test_the_map_shows_what_is_there():
    """docs/architecture.md names every room, and no path that does not exist."""
    text = (ROOT / "docs/architecture.md").read_text()
    picture = text.split("```")[1]
    paths = set(re.findall(r"`([\w/]+/[\w.]*|\w+\.py)`", text))

    assert {room for room in set().union(*FLOORS, RIM - OUTSIDE) if not re.search(rf"\b{room}\b", picture)} == set()
    assert paths
    assert {path for path in paths if not (PACKAGE / path).exists() and not (ROOT / path).exists()} == set()


def test_every_module_says_what_it_is():
    """A module begins with a docstring of what it is for."""
    modules = {
        name: nodes_of(path)[0]
        for name, path in MODULES.items()
        if path.stem != "apps" and path.parent.name != "migrations"  # which Django writes
    }

    assert [name for name, module in modules.items() if module.body and not ast.get_docstring(module)] == []


def test_the_public_api_is_documented():
    """Every public function and class, and each public method of it, has a docstring."""
    public = {name: getattr(notifications, name) for name in notifications.__all__}
    members = {
        f"{name}.{key}": member
        for name, each in public.items()
        if inspect.isclass(each)
        for key, member in vars(each).items()
        if not key.startswith("_") and (callable(member) or isinstance(member, classmethod | property))
    }
    publishing = {name: each for name, each in public.items() if name.startswith("publish")}

    assert [name for name, each in {**public, **members}.items() if not inspect.getdoc(each)] == []
    assert [name for name, each in publishing.items() if "Args" not in each.__doc__] == []


def test_the_public_api_is_complete_and_sorted():
    """What the package imports for others stands in __all__, and nothing else."""
    assert notifications.__all__ == sorted(notifications.__all__)
    assert {"publish", "publish_to_user", "publish_progress", "Topic", "PublishError"} <= set(notifications.__all__)


@pytest.mark.parametrize(
    "name", ["announce", "publish", "publish_many", "publish_to_all", "publish_to_user", "publish_progress"]
)
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
    """Every foreign package that the app imports stands among its dependencies, or in an extra for sites."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = {
        re.match(r"[a-z0-9_-]+", each)[0].replace("-", "_")
        for each in project["dependencies"] + extras["metrics"] + extras["uvicorn"]
    }
    own_or_standard = {"notifications", "__future__", *__import__("sys").stdlib_module_names}
    used = {
        name.split(".")[0]
        for path in MODULES.values()
        for name in imports_of(path)
        if name.split(".")[0] not in (CONTRIB.get(path.stem, ()) if path.parent.name == "contrib" else ())
    } - own_or_standard

    assert used - required <= {"asgiref"}  # Django's own dependency, for as long as there is Django
