"""The demo's uploads: what the worker finds out is true, and whose it is stays his."""

import hashlib
import io
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from websockets.sync.client import ClientConnection, connect

from project.uploads import analysis
from project.uploads.analysis import AnalysisError, Content, draw, read
from project.uploads.filetypes import detect, name_score
from tests.demo_site import ROOT, TIMEOUT, Demo, Visitor, broken_png, environment, png, running_demo, wait_until

# --- analysis, without a site --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4096, 4097, 1_000_000])
def test_read_tells_the_truth(size: int):
    """Progress ends with all bytes, and the digest is hashlib's."""
    data = b"\x00" + bytes(size - 1)

    *steps, content = read(io.BytesIO(data), size)

    assert steps == sorted(steps)
    assert steps[-1] == size
    assert content == Content(hashlib.sha256(data).hexdigest(), "application/octet-stream")


@pytest.mark.parametrize("size", [9, 11])
def test_read_refuses_another_size(size: int):
    """A file that is not as long as what was uploaded is an error, not a result."""
    with pytest.raises(AnalysisError, match=f"10 bytes instead of {size}"):
        list(read(io.BytesIO(b"x" * 10), size))


def test_draw_decodes_the_image():
    """Size and thumbnail come from the decoded pixels."""
    picture = draw(io.BytesIO(png(320, 200)), "image/png")

    assert (picture.width, picture.height) == (320, 200)
    with Image.open(io.BytesIO(picture.thumbnail)) as thumbnail:
        assert thumbnail.size == (160, 100)
        assert thumbnail.getpixel((5, 5)) == (0, 128, 128)


@pytest.mark.parametrize("data", [png()[:150], broken_png(), png()[:8], b"\x89PNG\r\n\x1a\n" + b"?" * 500])
def test_draw_refuses_a_damaged_image(data: bytes):
    """Whatever is wrong inside, the answer is one sentence."""
    with pytest.raises(AnalysisError, match="The PNG image is damaged"):
        draw(io.BytesIO(data), "image/png")


def test_draw_refuses_a_decompression_bomb(monkeypatch: pytest.MonkeyPatch):
    """An image of too many pixels is refused before it is decoded."""
    monkeypatch.setattr(analysis, "MAX_PIXELS", 320 * 200 - 1)

    with pytest.raises(AnalysisError, match="too large: 320 × 200"):
        draw(io.BytesIO(png(320, 200)), "image/png")


def test_draw_leaves_other_files_alone():
    """What is no image has no picture."""
    assert draw(io.BytesIO(b"%PDF-1.7"), "application/pdf") is None


@pytest.mark.parametrize(
    ("head", "media_type"),
    [
        (png()[:64], "image/png"),
        (b"%PDF-1.7 \xff", "application/pdf"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
        (b"\x00\x00\x00\x20ftypisom", "video/mp4"),
        ("Grüße".encode()[:-2], "text/plain"),
        ("Grüße".encode("latin-1") + b"xx", "application/octet-stream"),
        (b"", "application/octet-stream"),
    ],
)
def test_detect(head: bytes, media_type: str):
    """The type is what the first bytes prove."""
    assert detect(head) == media_type


@pytest.mark.parametrize(
    ("name", "media_type", "score"),
    [
        ("a.png", "image/png", 100),
        ("a.tar.gz", "application/gzip", 100),
        ("a.docx", "application/zip", 100),
        ("a.csv", "text/plain", 100),
        ("a.m4a", "video/mp4", 100),
        ("invoice.pdf", "application/zip", 0),
        ("invoice.pdf", "text/plain", 0),
        ("photo.jpg", "image/png", 0),
        ("README", "text/plain", 50),
        ("a.png", "application/octet-stream", 50),
        ("a.bin", "image/png", 50),
    ],
)
def test_name_score(name: str, media_type: str, score: int):
    """A name that contradicts the content is told from one that agrees or says nothing."""
    assert name_score(name, media_type) == score


# --- the site ------------------------------------------------------------------------------------------------


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


def django(env: dict[str, str], *arguments: str) -> None:
    subprocess.run([sys.executable, ROOT / "manage.py", *arguments], env=env, check=True, timeout=TIMEOUT)


def create_user(env: dict[str, str], name: str) -> None:
    code = f"from django.contrib.auth.models import User; User.objects.create_user({name!r}, password={name!r})"
    django(env, "shell", "-v", "0", "-c", code)


def socket_of(visitor: Visitor) -> ClientConnection:
    cookies = f"sessionid={visitor.cookie('sessionid')}"
    url = visitor.url.replace("http", "ws") + "ws/notifications/"
    return connect(url, origin=visitor.url.rstrip("/"), additional_headers={"Cookie": cookies})


def receive(socket: ClientConnection, *actions: str) -> dict[str, object]:
    """Return the next frame with one of the actions."""
    while True:
        frame = json.loads(socket.recv(timeout=TIMEOUT))
        if frame["action"] in actions:
            return frame


def test_results_are_true(owner: Visitor):
    """Digest, type, size and thumbnail are those of the very bytes that were sent."""
    picture = png(400, 100)

    status, answer = owner.upload(("true.png", picture), ("true.txt", b"words\n" * 5000))
    found = owner.finished("true.png", "true.txt")

    assert status == 201
    assert [upload["name"] for upload in answer["uploads"]] == ["true.png", "true.txt"]
    assert found["true.png"]["status"] == found["true.txt"]["status"] == "completed"
    assert found["true.png"]["percent"] == 100
    digest = hashlib.sha256(picture).hexdigest()[:12]
    assert found["true.png"]["facts"] == ["image/png", "400 × 100", f"SHA-256 {digest}…"]
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


def test_progress_arrives_as_typed_messages(owner: Visitor):
    """The owner's socket gets file and batch progress, the result, and a notice at the end of the batch."""
    with socket_of(owner) as socket:
        receive(socket, "auth_success")
        owner.upload(("told.txt", b"words\n" * 100))
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
    upload = answer["uploads"][0]["id"]
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
    """Who is not logged in can upload nothing and see nothing."""
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
    assert [upload["name"] for upload in answer["uploads"]] == ["small.txt"]
    assert [upload["name"] for upload in answer["rejected"]] == ["large.bin"]


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
    upload = visitor.finished("gone.png")["gone.png"]["id"]
    assert len(list((directory / "media").rglob(f"{upload}*"))) == 2

    visitor.post("uploads/clear/")

    assert visitor.states() == {}
    assert list((directory / "media").rglob(f"{upload}*")) == []


# --- workers that come and go --------------------------------------------------------------------------------

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
    """A site with a database and no Redis: what cannot be published must not stop the work."""
    env = environment(tmp_path, REDIS_URL="redis://127.0.0.1:1/0", UPLOAD_LEASE="1")
    django(env, "migrate", "-v", "0")
    return env


def start_worker(env: dict[str, str], **more: str) -> subprocess.Popen[str]:
    command = [sys.executable, ROOT / "manage.py", "run_worker"]
    return subprocess.Popen(command, env=env | more, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def end_worker(worker: subprocess.Popen[str]) -> str:
    """Stop a worker as a service manager does, and return what it said."""
    worker.terminate()
    output = worker.communicate(timeout=TIMEOUT)[0]
    assert worker.returncode == 0, output
    return output


def rows(env: dict[str, str], columns: str, condition: str = "1") -> list[tuple[object, ...]]:
    connection = sqlite3.connect(env["DATABASE_PATH"], timeout=TIMEOUT)
    try:
        return connection.execute(f"SELECT {columns} FROM uploads_upload WHERE {condition}").fetchall()
    finally:
        connection.close()


def test_upload_of_a_killed_worker_is_taken_up_again(site: dict[str, str]):
    """After kill -9 of its worker an upload is analysed by the next, and its percentage does not go back."""
    django(site, "shell", "-v", "0", "-c", CREATE.format(count=1, size=100_000))
    victim = start_worker(site, DEMO_PACE="0.05")
    wait_until(lambda: rows(site, "1", "progress_percent > 20"), "a bar in motion")
    victim.kill()
    victim.communicate()
    [(reached,)] = rows(site, "progress_percent")

    heir = start_worker(site, DEMO_PACE="600")
    wait_until(lambda: rows(site, "1", "attempts = 2"), "the second attempt")
    assert rows(site, "1", f"progress_percent >= {reached}")
    assert "given back" in end_worker(heir)
    assert rows(site, "status, attempts") == [("pending", 1)]
    last = start_worker(site)
    wait_until(lambda: rows(site, "1", "status = 'completed'"), "the end")
    end_worker(last)

    assert rows(site, "progress_percent, sha256") == [(100, hashlib.sha256(bytes(100_000)).hexdigest())]


def test_file_that_kills_its_workers_is_given_up(site: dict[str, str]):
    """A file over which three workers died fails, instead of killing a fourth."""
    django(site, "shell", "-v", "0", "-c", CREATE.format(count=1, size=10) + "Upload.objects.update(attempts=3)")
    worker = start_worker(site)

    wait_until(lambda: rows(site, "1", "status = 'failed'"), "the failure")
    end_worker(worker)

    assert rows(site, "error_message") == [("3 workers died over this file.",)]


def test_two_workers_share_the_work(site: dict[str, str]):
    """Each upload is taken by one worker only, and none is forgotten."""
    django(site, "shell", "-v", "0", "-c", CREATE.format(count=20, size=10))
    workers = [start_worker(site, DEMO_PACE="0.01") for _ in range(2)]

    wait_until(lambda: len(rows(site, "1", "status = 'completed'")) == 20, "all completed")
    outputs = [end_worker(worker) for worker in workers]

    assert set(rows(site, "attempts")) == {(1,)}
    assert sum(output.count("completed: ") for output in outputs) == 20
