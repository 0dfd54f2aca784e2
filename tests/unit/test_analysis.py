"""What the worker finds out about a file is true."""

import hashlib
import io

import pytest
from PIL import Image

from project.uploads import analysis
from project.uploads.analysis import AnalysisError, Content, draw, read
from project.uploads.filetypes import detect, name_score
from tests.cases import cases
from tests.demo_site import broken_png, png


@cases("size", [1, 4096, 4097, 1_000_000])
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


@cases("data", [png()[:150], broken_png(), png()[:8], b"\x89PNG\r\n\x1a\n" + b"?" * 500])
def test_draw_refuses_a_damaged_image(data: bytes):
    """Whatever is wrong inside, the answer is one sentence."""
    with pytest.raises(AnalysisError, match="The PNG image is damaged"):
        draw(io.BytesIO(data), "image/png")


def test_draw_refuses_a_decompression_bomb(monkeypatch: pytest.MonkeyPatch):
    """An image of too many pixels is refused before it is decoded."""
    monkeypatch.setattr(analysis, "MAX_PIXELS", 320 * 200 - 1)

    with pytest.raises(AnalysisError, match="too large: 320 × 200"):
        draw(io.BytesIO(png(320, 200)), "image/png")


@cases("orientation", range(1, 9))
def test_draw_turns_a_photo_upright(orientation: int):
    """However the camera was held, size and thumbnail are those of the picture that people see."""
    upright = Image.new("RGB", (400, 300), "blue")
    upright.paste("red", (0, 0, 100, 75))
    back = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
    stored = upright.transpose(analysis.TURNS[back]) if back > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    stored.save(file, "JPEG", exif=exif, quality=95)

    picture = draw(file, "image/jpeg")

    assert (picture.width, picture.height) == (400, 300)
    with Image.open(io.BytesIO(picture.thumbnail)) as thumbnail:
        assert thumbnail.size == (160, 120)
        red, _green, blue = thumbnail.getpixel((5, 5))
        assert red > 200 > 50 > blue


def test_draw_leaves_other_files_alone():
    """What is no image has no picture."""
    assert draw(io.BytesIO(b"%PDF-1.7"), "application/pdf") is None


@cases(
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


@cases(
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
