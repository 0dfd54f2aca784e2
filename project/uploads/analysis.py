"""What the worker finds out about a file. Nothing here knows of the database or of messages."""

import hashlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from PIL import Image, ImageOps

from project.uploads.filetypes import HEAD_SIZE, IMAGES, detect

STEPS = 20
"""Chunks that a file is read in, as long as chunks are between ``MIN_CHUNK`` and ``MAX_CHUNK`` bytes."""
MIN_CHUNK = HEAD_SIZE
MAX_CHUNK = 1024 * 1024

MAX_PIXELS = 50_000_000
"""Larger images are refused: decoded, this is 200 MB of memory already."""
THUMBNAIL_SIZE = (160, 160)


class AnalysisError(Exception):
    """The file cannot be analysed; the text says why, to the person who uploaded it."""


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
                if image.width * image.height > MAX_PIXELS:
                    raise AnalysisError(f"The image is too large: {image.width:,} × {image.height:,} pixels.")
                upright = ImageOps.exif_transpose(image)
                picture = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise AnalysisError("The image is too large.") from error
    # Pillow's decoders raise all of these for damaged files.
    except (OSError, SyntaxError, ValueError, ArithmeticError, LookupError, EOFError, TypeError) as error:
        raise AnalysisError(f"The {IMAGES[content_type]} image is damaged.") from error
    width, height = picture.size
    picture.thumbnail(THUMBNAIL_SIZE)
    drawn = io.BytesIO()
    picture.save(drawn, "PNG")
    return Picture(width, height, drawn.getvalue())
