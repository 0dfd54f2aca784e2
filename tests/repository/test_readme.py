"""What is written in the documents is what the code says: tables, numbers, links and examples."""

import ast
import functools
import json
import re
import typing
from pathlib import Path

import msgspec
import pytest
from django.contrib.auth import get_user_model
from django.test import RequestFactory

from notifications import PublishError, conf, layers, messages, publisher, topics
from notifications.bridge import backlog, forwarder, inlet, lease, shard, status
from notifications.bridge.state import REPORTS
from notifications.broker import breaker, clients, wire
from notifications.connection import heartbeat, limits
from notifications.delivery import buffer, flow_control, reconciler, subscriber
from notifications.history.changes import BUCKETS
from notifications.history.inlet import INLET, MAX_REFUSED
from notifications.history.stamped import STAMPED
from notifications.history.store import IDEMPOTENCY_TTL, PAGE_BYTES
from notifications.protocol import frames
from tests import source
from tests.guides import table

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
MESSAGES, OPERATIONS, PROTOCOL, SECURITY = (
    ROOT / "docs" / name for name in ("messages.md", "operations.md", "protocol.md", "security.md")
)
DOCUMENTS = {path: path.read_text() for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]}
"""The text of each."""


def marked(mark: str, document: Path = ROOT / "README.md") -> str:
    """Return what stands in the code block behind ``<!-- mark -->``."""
    text = document.read_text()
    found = re.findall(rf"<!-- {re.escape(mark)} -->\n```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(found) == 1, f"{document.name} has {len(found)} blocks marked {mark!r}"
    return str(found[0])


def test_changelog_has_its_shape() -> None:
    """Releases are headed by version and day, changes by the words of Keep a Changelog."""
    text = (ROOT / "CHANGELOG.md").read_text()
    newest, *older = re.findall(r"^## (.+)$", text, re.MULTILINE)
    words = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}

    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", release) for release in older)
    assert newest == "[Unreleased]"
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= words


def example(mark: str, document: Path = MESSAGES) -> dict[str, object]:
    """Run an example of a document as a module, and return what it defines."""
    namespace: dict[str, object] = {"__name__": "example"}
    exec(compile(marked(f"example: {mark}", document), f"{document.name}, {mark}", "exec"), namespace)
    return namespace


def request_of(user: object) -> object:
    request = RequestFactory().post("/", {"first_name": "Ada"})
    request.user = user
    request.auser = functools.partial(returning, user)
    return request


async def returning(value: object) -> object:
    return value


@pytest.fixture
def user(transactional_db: None) -> object:
    return get_user_model().objects.create_user("ada")


def test_token_view_makes_a_token_of_its_user(user) -> None:
    """The view of docs/security.md answers with a token that names its user."""
    from notifications.tokens import check_token

    answer = example("token-view", SECURITY)["notification_token"](request_of(user))

    assert check_token(json.loads(answer.content)["token"]) == user


# What is written must be so


@pytest.mark.parametrize(("mark", "described"), [("settings", conf.Settings), ("kind", conf.Kind)])
def test_tables_of_settings_are_those_of_the_code(mark: str, described: type) -> None:
    """The tables of docs/operations.md name every setting and its default, in the order of conf.py."""
    rows = table(OPERATIONS, mark)
    names = list(described.__dataclass_fields__)

    assert list(rows) == names
    for name in names:
        default = getattr(described(), name)
        assert rows[name][0] == "required" if name == "REDIS_URL" else ast.literal_eval(rows[name][0]) == default


def test_code_blocks_are_what_they_say() -> None:
    """Every Python block of the documents is Python, and every JSON block JSON."""
    wrong = []
    for document, text in DOCUMENTS.items():
        for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            try:
                {"python": ast.parse, "json": json.loads}.get(language, str)(block)
            except (SyntaxError, json.JSONDecodeError) as error:
                wrong.append(f"{document}: {error} in\n{block}")

    assert wrong == []


def test_links_lead_somewhere() -> None:
    """Every link to a file or a heading of the project finds it."""
    dead = []
    for document, text in DOCUMENTS.items():
        for link in re.findall(r"(?<!!)\[[^]]+\]\(((?!https?:)[^)]+)\)", text):
            path, _, heading = link.partition("#")
            target = (document.parent / path) if path else document
            if not target.exists() or (heading and heading not in headings(target)):
                dead.append(f"{document}: {link}")

    assert dead == []


@functools.cache
def headings(document: Path) -> set[str]:
    """Return what links may name of a document."""
    titles = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


WIDE = re.compile(r"\||!\[|    |#|<")
"""How lines begin that may be long: tables, pictures, code, headings and tags. So may be a changelog's."""


def test_lines_of_text_are_at_most_100_characters() -> None:
    """The text of the documents can be read, and compared, in a window of ordinary width; a long URL may stand out."""
    long = []
    for document, text in DOCUMENTS.items():
        if document.name != "CHANGELOG.md":
            prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
            lines = [line for line in prose.splitlines() if len(line) > 100 and not WIDE.match(line)]
            long += [f"{document}: {line}" for line in lines if "](" not in line or len(line.split()) > 4]

    assert long == []


def test_readme_is_short() -> None:
    """The README has at most 250 lines; the rest is in the pages it links to."""
    assert len(README.splitlines()) <= 250


def test_picture_of_the_demo_is_small() -> None:
    """The picture that the README shows is there, and does not make a clone wait."""
    (picture,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    if not (ROOT / picture).exists():
        pytest.skip(f"{picture} is not there yet")

    assert (ROOT / picture).stat().st_size < 300_000


def cells(document: str, mark: str) -> dict[str, list[str]]:
    return table(ROOT / "docs" / document, mark)


def test_protocol_names_every_action_error_and_close_code() -> None:
    """docs/protocol.md has each action a client may use, each error and each close code, and no other."""
    errors = {source.text(call.args[0]) for call in source.calls("_error", "FrameError")} - {""}

    assert set(cells("protocol.md", "actions")) == frames._ACTIONS
    assert set(cells("protocol.md", "errors")) == errors
    assert set(cells("protocol.md", "close codes")) == {str(code.value) for code in frames.CloseCode}


def test_protocol_shows_frames_that_are_understood() -> None:
    """The frames of docs/protocol.md that a client may send are accepted, each as its own action."""
    for action, (frame, _) in cells("protocol.md", "actions").items():
        assert frames.decode(frame).__struct_config__.tag == action


def test_protocol_states_the_limits_of_the_code() -> None:
    """docs/protocol.md has the numbers of the code."""
    stated = [int(row[0]) for row in cells("protocol.md", "limits").values()]

    assert stated == [
        frames.MAX_FRAME_SIZE,
        frames.MAX_AUTH_FRAME_SIZE,
        limits.MAX_SUBSCRIPTIONS,
        limits.GUEST_SUBSCRIPTIONS,
        limits.BURST,
        limits.RATE,
        limits.MAX_REFUSED_FRAMES,
        limits.MAX_INVALID_FRAMES,
        limits.MAX_WAITING_FRAMES,
        topics.MAX_ID_LENGTH,
    ]


def test_delivery_states_the_numbers_of_the_code() -> None:
    """docs/delivery.md has the numbers of the code, and both layers' intervals."""
    stated = [float(row[0]) for row in cells("delivery.md", "numbers").values()]
    mebi, kibi = 1024 * 1024, 1024

    assert stated == [
        conf.Settings().HISTORY_SIZE,
        conf.Settings().HISTORY_TTL,
        IDEMPOTENCY_TTL,
        publisher.MAX_IDEMPOTENCY_KEY_LENGTH,
        lease.TTL,
        lease.POLL_INTERVAL,
        wire.MAX_SILENCE,
        breaker.FAIL_FAST,
        clients.IDLE,
        clients.PROOF,
        backlog.MAX_AGE,
        backlog.MAX_BYTES / mebi,
        forwarder.MAX_BYTES / mebi,
        shard.BATCH_MESSAGES,
        conf.Settings().INLET_SIZE,
        inlet.STEP,
        MAX_REFUSED,
        reconciler.AFTER_JOIN,
        subscriber.INTERVAL_WITH_GAPS_TOLD,
        conf.Settings().HEARTBEAT_INTERVAL,
        reconciler.AT_LATEST,
        BUCKETS,
        buffer.MAX_HELD / kibi,
        layers.CAPACITY,
        flow_control.BOUND / kibi,
        flow_control.ANONYMOUS_PONGS,
        heartbeat.PATIENCE,
        PAGE_BYTES / kibi,
        reconciler.MAX_READS,
    ]


def test_states_of_the_health_check_are_those_of_the_code() -> None:
    """docs/operations.md says of each state a listener may be in whether it is healthy."""
    stated = cells("operations.md", "states")

    assert {state.removesuffix(": …") for state in stated} == set(REPORTS.values())
    assert {state for state, row in stated.items() if row[0] == "yes"} == status.CONNECTED


def test_names_in_redis_are_those_of_the_code() -> None:
    """docs/operations.md lists every key and channel of this app."""
    written = {source.text(call.args[0]).partition(":")[0] for call in source.calls("internal_name")}
    names = written - {"", "*"} | {STAMPED, INLET, status._KEY}
    stated = {name.split(":")[1] for name in cells("operations.md", "keys") if name.startswith("notifications:")}

    assert stated == names


def test_examples_of_messages_are_what_the_code_writes() -> None:
    """docs/messages.md has one example of each typed message, with exactly its fields and allowed words."""
    text = (ROOT / "docs/messages.md").read_text()
    typed = [kind for kind in typing.get_args(messages.Message) if typing.get_origin(kind) is None]
    sections = dict(re.findall(r"^### (\w+)\n\n```json\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))

    assert set(sections) == {kind.__name__ for kind in typed}
    for kind in typed:
        shown = sections[kind.__name__]
        assert json.loads(messages.encode(msgspec.json.decode(shown, type=kind), 10000)) == json.loads(shown)
    for words in (typing.get_args(messages.State), messages.UploadStatus, messages.UploadStage):
        assert ", ".join(f"`{word}`" for word in words) in " ".join(text.split())


def test_log_lines_are_explained() -> None:
    """docs/operations.md explains every line from info upwards that the app can log, and no other."""
    logged = {source.text(call.args[0]) for call in source.calls("info", "warning", "error", "exception")}
    logged -= {"", "%s"}  # what is not a log line, and the publisher's: the text of its PublishError
    logged.add(str(PublishError("%s", "%s")).replace("'%s'", "%s"))

    assert set(cells("operations.md", "log")) == {re.sub(r"%[\d.]*[a-z]", "…", line) for line in logged}


def test_account_for_workers_is_the_same_everywhere() -> None:
    """docs/security.md repeats the line of docs/operations.md for foreign programs to the letter."""
    assert marked("example: acl", OPERATIONS).strip() in SECURITY.read_text()
