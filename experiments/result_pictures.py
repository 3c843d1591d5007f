"""The pictures of an evaluation: a crop of every method's output on every image, saved while they are measured."""

import json
import re
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from torch import Tensor

from callbacks.image_panel import centre, to_uint8
from datamodules.benchmarks import BenchmarkImage
from datamodules.files import write_whole, written_beside
from experiments.measure import DENOISED_SHUFFLED, SHUFFLED

PICTURES = "pictures"
LIST = "pictures.json"
SIDE = 512
"""Most px per side of a picture: the middle of the image."""
LEFT_OUT = (SHUFFLED, DENOISED_SHUFFLED)
_LONGEST = 160


class ResultPictures:
    """Takes every output that `measure` shows it, in a temporary folder, and puts them into a folder of results.

    A picture is a PNG, 8 bit, of the output's middle, at most 512 px per side. pictures/pictures.json lists group,
    image, method and file of each. Methods with shuffled ids are left out.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()  # where the results go is known after the measuring alone
        self._list: list[dict[str, str]] = []

    def __call__(self, image: BenchmarkImage, method: str, output: Tensor) -> None:
        """Keep an output (3,H,W) in [0,1]."""
        if method in LEFT_OUT:
            return
        file = self._unused_name(f"{image.group}-{image.name}-{method}")
        pixels = to_uint8(centre(output, SIDE)).permute(1, 2, 0).contiguous().cpu().numpy()
        Image.fromarray(pixels).save(Path(self._folder.name, file))
        self._list.append({"group": image.group, "image": image.name, "method": method, "file": file})

    def save(self, folder: Path) -> None:
        """Put them into folder/pictures/, the list at last; what lay there of an earlier evaluation is replaced."""
        target = folder / PICTURES
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for entry in self._list:
            with written_beside(target / entry["file"]) as part:
                shutil.copyfile(Path(self._folder.name, entry["file"]), part)
        write_whole(target / LIST, (json.dumps(self._list, indent=1) + "\n").encode())

    def _unused_name(self, text: str) -> str:
        name = plain_name(text)[:_LONGEST]
        used = {entry["file"] for entry in self._list}
        number = next(n for n in range(1, len(used) + 2) if _numbered(name, n) not in used)
        return _numbered(name, number)


def _numbered(name: str, number: int) -> str:
    return f"{name}.png" if number == 1 else f"{name}-{number}.png"


def plain_name(text: str) -> str:
    """The text as the name of a file: what is not of A-Z, a-z, 0-9 or "_.-" becomes "_".

    >>> plain_name("flat-sky-codec(hr)")
    'flat-sky-codec_hr_'
    """
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text)


def read_pictures(folder: Path) -> dict[tuple[str, str, str], Path]:
    """The pictures of a folder of results by group, image and method, in the order of the measuring; {} without any."""
    try:
        entries = json.loads((folder / PICTURES / LIST).read_text())
        return {
            (entry["group"], entry["image"], entry["method"]): folder / PICTURES / Path(entry["file"]).name
            for entry in entries
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # measured without pictures
