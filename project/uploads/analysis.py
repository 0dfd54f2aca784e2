"""The analysis of a file. This module does not use the database or send messages."""

import hashlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from PIL import ExifTags, Image

from project.uploads.filetypes import HEAD_SIZE, IMAGES, detect

STEPS = 20
"""Chunks that a file is read in, as long as chunks are between ``MIN_CHUNK`` and ``MAX_CHUNK`` bytes."""
MIN_CHUNK = HEAD_SIZE
MAX_CHUNK = 1024 * 1024

MAX_PIXELS = 50_000_000
"""Larger images are refused: decoded, this is 200 MB of memory already, which are held once; 400 MB for a rare JPEG."""
DECODED_TIMES = {"WEBP": 4}
"""Copies that a decoder itself holds, where it is more than one: so much smaller these images have to be."""
STRIP_PIXELS = 1_000_000
"""Pixels that are converted at a time: a converted copy of the whole image would be as large as the image."""
THUMBNAIL_SIZE = (160, 160)

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to turn an image upright, by the orientation that the camera recorded."""
SIDEWAYS = {TURNS[orientation] for orientation in (5, 6, 7, 8)}


class AnalysisError(Exception):
    """The file cannot be analysed; the message gives the reason to its uploader."""


@dataclass(frozen=True)
class Content:
    sha256: str
    content_type: str


@dataclass(frozen=True)
class Picture:
    width: int
    height: int
    thumbnail: bytes
    """A PNG."""


def chunk_size(size: int) -> int:
    return min(max(size // STEPS, MIN_CHUNK), MAX_CHUNK)


def read(file: BinaryIO, size: int) -> Iterator[int | Content]:
    """
    Read ``file`` to its end.

    Yields:
        The number of bytes read so far after each chunk, and at last what they are.

    Raises:
        AnalysisError: If there are fewer or more than ``size`` bytes.

    """
    digest = hashlib.sha256()
    head = b""
    done = 0
    while chunk := file.read(chunk_size(size)):
        head = head or chunk[:HEAD_SIZE]
        digest.update(chunk)
        done += len(chunk)
        yield done
    if done != size:
        raise AnalysisError(f"The stored file has {done:,} bytes instead of {size:,}.")
    yield Content(digest.hexdigest(), detect(head))


def shrink(image: Image.Image) -> Image.Image:
    """Decode a whole image, and scale it down to at least twice the thumbnail, strip by strip."""
    image.load()
    mode = "RGBA" if image.has_transparency_data else "RGB"
    width, height = image.size
    factor = max(1, max(width, height) // (2 * max(THUMBNAIL_SIZE)))
    small = Image.new(mode, (-(-width // factor), -(-height // factor)))
    rows = factor * max(1, STRIP_PIXELS // (width * factor))
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        small.paste(strip.convert(mode).reduce(factor), (0, top // factor))
    return small


def draw(file: BinaryIO, content_type: str) -> Picture | None:
    """
    Decode an image wholly and draw its thumbnail.

    Returns:
        ``None`` if ``content_type`` is no image that we know.

    Raises:
        AnalysisError: If the image is broken or too large.

    """
    if content_type not in IMAGES:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=[IMAGES[content_type]]) as image:
                width, height = image.size
                if width * height > MAX_PIXELS // DECODED_TIMES.get(IMAGES[content_type], 1):
                    raise AnalysisError(f"The image is too large: {width:,} × {height:,} pixels.")
                image.draft("RGB", tuple(2 * side for side in THUMBNAIL_SIZE))  # a JPEG is decoded smaller
                picture = shrink(image)
                turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise AnalysisError("The image is too large.") from error
    # Pillow's decoders raise all of these for damaged files.
    except (OSError, SyntaxError, ValueError, ArithmeticError, LookupError, EOFError, TypeError) as error:
        raise AnalysisError(f"The {IMAGES[content_type]} image is damaged.") from error
    if turn is not None:
        picture = picture.transpose(turn)
        if turn in SIDEWAYS:
            width, height = height, width
    picture.thumbnail(THUMBNAIL_SIZE)
    drawn = io.BytesIO()
    picture.save(drawn, "PNG")
    return Picture(width, height, drawn.getvalue())
