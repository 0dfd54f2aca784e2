"""The type of a file, detected from its first bytes and never from its name."""

import codecs
import mimetypes

HEAD_SIZE = 4096
"""Number of leading bytes of a file that ``detect`` needs."""

SIGNATURES = [  # (offset, bytes, media type); the longer and rarer first
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (8, b"WAVE", "audio/x-wav"),
    (0, b"II*\x00", "image/tiff"),
    (0, b"MM\x00*", "image/tiff"),
    (0, b"%PDF-", "application/pdf"),
    (0, b"PK\x03\x04", "application/zip"),
    (0, b"\x1f\x8b\x08", "application/gzip"),
    (0, b"\xfd7zXZ\x00", "application/x-xz"),
    (0, b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
    (0, b"SQLite format 3\x00", "application/vnd.sqlite3"),
    (0, b"\x7fELF", "application/x-elf"),
    (0, b"fLaC", "audio/flac"),
    (0, b"OggS", "audio/ogg"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"\x1a\x45\xdf\xa3", "video/webm"),
    (4, b"ftyp", "video/mp4"),
]
RECOGNISED = {media_type for _offset, _signature, media_type in SIGNATURES}
UNKNOWN = "application/octet-stream"
COMPRESSED = {"gzip": "application/gzip", "xz": "application/x-xz"}
"""What ``mimetypes`` calls an encoding, as in ``.tar.gz``, is the content that is found."""

IMAGES = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/gif": "GIF",
    "image/webp": "WEBP",
    "image/tiff": "TIFF",
}
"""The images that the worker opens, with Pillow's names of their formats."""

CONTAINERS = {
    "application/vnd.sqlite3": ("application/",),
    "application/zip": ("application/", "model/"),  # .docx, .odt, .epub, .jar … are ZIP files
    "audio/x-wav": ("audio/",),  # registered under three names
    "audio/ogg": ("audio/", "video/"),
    "video/mp4": ("audio/", "video/", "image/"),  # also .m4a, .mov, .heic
    "video/webm": ("audio/", "video/"),  # also .mkv
    "image/tiff": ("image/",),  # camera raws
    "text/plain": ("text/", "application/", "image/svg", "message/", "video/mp2t"),  # .json, .svg, .eml, .ts …
}
"""Content that honestly comes under many extensions: whatever media type the name may suggest then."""


def detect(head: bytes) -> str:
    """Return the media type that the first bytes prove, or ``application/octet-stream``."""
    for offset, signature, media_type in SIGNATURES:
        if head.startswith(signature, offset):
            return media_type
    return "text/plain" if _is_text(head) else UNKNOWN


def name_score(name: str, media_type: str) -> int:
    """
    Say how well a file's name agrees with its content.

    Returns:
        100 if the extension stands for this content, 0 if for another, 50 if one of them says nothing.

    """
    suggested, encoding = mimetypes.guess_type(name)
    if encoding is not None:
        suggested = COMPRESSED.get(encoding)
    if suggested in (None, UNKNOWN) or media_type == UNKNOWN:
        return 50
    if suggested == media_type:
        return 100
    if suggested in RECOGNISED:
        return 0  # we would have known it
    return 100 if suggested.startswith(CONTAINERS.get(media_type, ())) else 0


def _is_text(head: bytes) -> bool:
    if not head or b"\x00" in head:
        return False
    try:
        # Not final: the last character may be cut in two at the end of the head.
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True
