"""Analysing an image in a process of its own: how much memory that takes."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from project.uploads import analysis
from project.uploads.filetypes import IMAGES
from tests.demo_site import ROOT


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("PNG", "RGBA", {}),
        ("TIFF", "CMYK", {"compression": "tiff_lzw"}),
        ("JPEG", "RGB", {"progressive": True}),
        ("GIF", "P", {}),
        ("WEBP", "RGBA", {"lossless": True}),
    ],
)
def test_draw_holds_an_image_once(tmp_path: Path, name: str, mode: str, options: dict):
    """The largest image that is taken costs 200 MB and not a multiple of it, however small its file is."""
    size = math.isqrt(analysis.MAX_PIXELS // analysis.DECODED_TIMES.get(name, 1))
    path = tmp_path / "image"
    media_type = next(media_type for media_type, each in IMAGES.items() if each == name)
    made = f"from PIL import Image; Image.new({mode!r}, ({size}, {size})).save({str(path)!r}, {name!r}, **{options})"
    subprocess.run([sys.executable, "-c", made], check=True)
    drawn = (
        "import resource\n"
        "from project.uploads.analysis import draw\n"
        "most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"before = most(); draw(open({str(path)!r}, 'rb'), {media_type!r}); print((most() - before) * 1024)"
    )

    # A process of its own begins with the peak of the one that starts it, unless a shell stands between them.
    command = ["sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, drawn]
    taken = int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)

    assert taken < 1.25 * analysis.MAX_PIXELS * 4
