"""The demo's pages, from outside: results arrive, and uploads stay private to their users."""

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.demo_site import Demo, Visitor, broken_png, environment, manage, png, receive, running_demo, socket_of


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def demo(directory: Path) -> Iterator[Demo]:
    with running_demo(directory) as demo:
        demo.url  # noqa: B018 - waits until it answers
        create_user(environment(directory), "stranger")
        yield demo


@pytest.fixture(scope="module")
def owner(demo: Demo) -> Visitor:
    visitor = Visitor(demo.url)
    visitor.log_in()
    return visitor


@pytest.fixture(scope="module")
def stranger(demo: Demo) -> Visitor:
    visitor = Visitor(demo.url)
    visitor.log_in("stranger", "stranger")
    return visitor


def create_user(env: dict[str, str], name: str) -> None:
    code = f"from django.contrib.auth.models import User; User.objects.create_user({name!r}, password={name!r})"
    manage(env, "shell", "-v", "0", "-c", code)


def test_results_are_true(owner: Visitor):
    """Digest, type, size and thumbnail are those of the very bytes that were sent."""
    picture = png(400, 100)

    status, answer = owner.upload(("true.png", picture), ("true.txt", b"words\n" * 5000))
    found = owner.finished("true.png", "true.txt")

    assert status == 201
    assert [upload["label"] for upload in answer["uploads"]] == ["true.png", "true.txt"]
    assert found["true.png"]["status"] == found["true.txt"]["status"] == "completed"
    assert found["true.png"]["percent"] == 100
    digest = hashlib.sha256(picture).hexdigest()[:12]
    assert found["true.png"]["message"].endswith(f"\xa0bytes · image/png · 400\xa0×\xa0100 · SHA-256 {digest}…")
    status, thumbnail = owner.get(found["true.png"]["thumbnail"].lstrip("/"))
    assert status == 200
    with Image.open(io.BytesIO(thumbnail)) as image:
        assert image.size == (160, 40)


def test_broken_image_fails_and_says_so(owner: Visitor):
    """A damaged image is a failure with a reason, and the other files of the batch are not its victims."""
    owner.upload(("broken.png", broken_png()), ("sound.png", png()))
    found = owner.finished("broken.png", "sound.png")

    assert (found["broken.png"]["status"], found["sound.png"]["status"]) == ("failed", "completed")
    assert found["broken.png"]["message"] == "The PNG image is damaged."
    assert found["broken.png"]["thumbnail"] is None


def test_progress_arrives_as_typed_messages(demo: Demo, directory: Path):
    """The owner's socket gets file and batch progress, the result, and a notice at the end of the batch."""
    create_user(environment(directory), "told")  # whom nothing is told of what another test has uploaded
    visitor = Visitor(demo.url)
    visitor.log_in("told", "told")
    with socket_of(visitor) as socket:
        receive(socket, "auth_success")
        visitor.upload(("told.txt", b"words\n" * 100))
        frames = [receive(socket, "file_progress", "batch_progress", "notice")]
        while frames[-1]["action"] != "notice":
            frames.append(receive(socket, "file_progress", "batch_progress", "notice"))

    files = [frame["payload"] for frame in frames if frame["action"] == "file_progress"]
    assert files[0]["progress_percentage"] == 0
    assert (files[-1]["progress_percentage"], files[-1]["status"]) == (100, "completed")
    batch = next(frame["payload"] for frame in frames if frame["action"] == "batch_progress")
    assert (batch["status"], batch["total"], batch["successful"], batch["failed"]) == ("completed", 1, 1, 0)
    assert frames[-1]["title"] == "Finished: 1 file analysed"


def test_only_the_owner_may_watch(owner: Visitor, stranger: Visitor):
    """A stranger learns nothing of an upload: no progress, no thumbnail, not in the list."""
    _, answer = owner.upload(("mine.png", png()))
    upload = answer["uploads"][0]["upload"]
    found = owner.finished("mine.png")

    with socket_of(owner) as socket:
        socket.send(json.dumps({"action": "subscribe_upload", "upload_id": upload}))
        assert receive(socket, "subscribed", "error")["topic"] == f"upload:{upload}"
    with socket_of(stranger) as socket:
        for upload_id in (upload, upload.upper(), upload.replace("-", ""), "no-uuid", "00000000-0000-4000-8000-0"):
            socket.send(json.dumps({"action": "subscribe_upload", "upload_id": upload_id}))
            assert receive(socket, "subscribed", "error")["code"] == "forbidden"
    with socket_of(owner) as socket:
        socket.send(json.dumps({"action": "subscribe_upload", "upload_id": upload.upper()}))
        assert receive(socket, "subscribed", "error")["code"] == "forbidden"
    assert stranger.states() == {}
    assert stranger.get(found["mine.png"]["thumbnail"].lstrip("/"))[0] == 404


def test_upload_is_for_users_only(demo: Demo):
    """Anonymous users can upload nothing and see nothing."""
    visitor = Visitor(demo.url)
    visitor.get("login/")

    assert b"Log in" in visitor.post_files(("a.txt", b"words"))[1]
    assert b"Log in" in visitor.get("uploads/state/")[1]


def test_upload_needs_the_csrf_token(owner: Visitor):
    """A form on another site cannot upload in a user's name."""
    assert owner.post_files(("a.txt", b"words"), token="x" * 32)[0] == 403


def test_upload_is_validated(owner: Visitor):
    """Empty, too large and too many files are refused with a reason; what is good beside them is taken."""
    assert owner.post("uploads/") == (400, b'{"error": "No file was sent."}')
    status, answer = owner.upload(*[(f"{n}.txt", b"words") for n in range(21)])
    assert (status, answer["error"]) == (400, "21 files are too many: send at most 20 at once.")
    status, answer = owner.upload(("empty.txt", b""))
    assert (status, answer["rejected"]) == (400, [{"name": "empty.txt", "reason": "The file is empty."}])
    status, answer = owner.upload(("large.bin", bytes(50 * 1024 * 1024 + 1)), ("small.txt", b"words"))
    assert status == 201
    assert [upload["label"] for upload in answer["uploads"]] == ["small.txt"]
    assert [file["name"] for file in answer["rejected"]] == ["large.bin"]


def test_name_of_a_file_is_never_a_path(owner: Visitor, directory: Path):
    """A hostile file name is only text: files are stored by id."""
    owner.upload(("../../<b>evil.png", png()))
    name = next(name for name in owner.states() if "evil" in name)
    owner.finished(name)

    assert "/" not in name
    assert "&lt;b&gt;evil.png" in owner.get("")[1].decode()
    assert not list(directory.rglob("*evil*"))


def test_clear_deletes_files_too(demo: Demo, directory: Path):
    """Clearing the list leaves nothing on the disk, and other people's files alone."""
    create_user(environment(directory), "tidy")
    visitor = Visitor(demo.url)
    visitor.log_in("tidy", "tidy")
    visitor.upload(("gone.png", png()))
    upload = visitor.finished("gone.png")["gone.png"]["upload"]
    assert len(list((directory / "media").rglob(f"{upload}*"))) == 2

    visitor.post("uploads/clear/")

    assert visitor.states() == {}
    assert list((directory / "media").rglob(f"{upload}*")) == []


def test_button_is_for_users_of_the_page_only(demo: Demo, owner: Visitor):
    """Another site's form, a link and a stranger do not reach the listener."""
    nobody = Visitor(demo.url)
    nobody.get("login/")

    assert b"Log in" in nobody.post("listener/kill/")[1]
    assert owner.get("listener/kill/")[0] == 405
    assert owner.post("listener/kill/", token="x" * 32)[0] == 403
    assert "was killed" not in demo.output


def test_report_of_the_browser_is_logged_and_bounded(demo: Demo, owner: Visitor):
    """What broke the content security policy is a line of the log; what is no report is refused."""
    report = {"csp-report": {"document-uri": "http://x/\n" + "y" * 500, "violated-directive": "script-src-elem"}}

    assert owner.post("csp-report/", json.dumps(report).encode(), "application/csp-report")[0] == 204
    for broken in (b"", b"[]", b'{"csp-report":[]}', b'{"csp-report":7}', b"\xff", b"[" * 10_000):
        assert owner.post("csp-report/", broken, "application/csp-report")[0] == 400
    assert owner.post("csp-report/", b"x" * 20_000, "application/csp-report")[0] == 413

    line = demo.expect("content security policy broken: (.*)")[1]
    assert line.startswith(r"page 'http://x/\ny")
    assert line.endswith("directive 'script-src-elem', blocked 'None'")
    assert len(line) < 300
    assert demo.output.count("content security policy") == 1
