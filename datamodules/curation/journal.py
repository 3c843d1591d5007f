"""What was measured, one line of JSON per image, written as soon as it is known: any end of a run loses little."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, BinaryIO

from datamodules import image_io, png16
from datamodules.curation import (
    blocking,
    clip_scores,
    contact_sheet,
    duplicates,
    endpoint,
    local_model,
    measure,
    measures,
    niqe,
    pyiqa_scores,
    rubric,
    spectrum,
    vision_judge,
)
from datamodules.curation.rows import JUDGE, PYIQA, QUALITY_SCORES, Row
from datamodules.curation.scan import RawFile
from datamodules.curation.settings import Curation, JudgeModel, ScoreModels
from datamodules.curation.verdicts import is_judged
from datamodules.files import opened_beside

JOURNAL = "journal.jsonl"

PIXELS = (image_io, png16)
CODE: dict[str, tuple[ModuleType, ...]] = {
    "preliminary": (*PIXELS, measure, measures, spectrum, duplicates),
    "quality": (*PIXELS, measure, measures, blocking, niqe, clip_scores, pyiqa_scores, local_model, contact_sheet),
    "judge": (*PIXELS, contact_sheet, rubric, vision_judge, endpoint, local_model),
}
"""The modules that the scores of each stage depend on."""
PACKAGES = {
    "preliminary": ("torch", "torchvision", "numpy", "scipy", "Pillow", "ImageHash"),
    "quality": ("torch", "torchvision", "numpy", "scipy", "Pillow", "transformers", "pyiqa"),
    "judge": ("Pillow",),
}
"""The packages that they depend on."""


class Journal:
    """The rows measured so far below one output folder, by relative path.

    Rows are handed out for files of the same path, size and modification time; in them, scores of stage 2 only for the
    same model files and prompts, judgements only for the same judge. Scores of other code are measured anew. Floats
    come back exactly. A line that was cut by a kill is dropped; lines that later ones replace go at the end of a run.
    """

    def __init__(self, path: Path, settings: Curation) -> None:
        self.keys = score_keys(settings)
        self._measured: set[str] = set()
        self._path = path
        self._file: BinaryIO | None = None
        self._places, self._replaced = _places(path)

    def __enter__(self) -> "Journal":
        self._file = self._path.open("a+b")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._file is not None
        if self._replaced and kind is None:
            self._compact(self._file)
        self._file.close()
        self._file = None

    @property
    def measured(self) -> int:
        """How many images were measured, judged or both in this run."""
        return len(self._measured)

    def row(self, file: RawFile) -> Row | None:
        """What is known of a file and still holds, or None."""
        line = self._line(file.relative)
        if line is None or [line["size"], line["mtime_ns"]] != [file.size, file.mtime_ns]:
            return None
        row: Row = {sys.intern(name): value for name, value in line["row"].items()}
        if line["keys"]["judge"] != self.keys["judge"] or not is_judged(row):
            row = _only(row, lambda name: not name.startswith(JUDGE))
        if line["keys"]["preliminary"] != self.keys["preliminary"]:
            if not is_judged(row):
                return None
            return _only(row, lambda name: name in ("path", "fingerprint") or name.startswith(JUDGE))
        if line["keys"]["quality"] != self.keys["quality"]:
            row = _only(row, lambda name: not (name in QUALITY_SCORES or name.startswith(PYIQA)))
        return row

    def append(self, file: RawFile, row: Row) -> None:
        """Write a measured row at once; what may go otherwise next time (no read, no memory, a crash) is left out.

        An earlier judgement of the same file is written again, as it may have been paid for.
        """
        self._measured.add(file.relative)
        if "fingerprint" not in row or row.get("failure") in ("out_of_memory", "crashed"):
            return
        keys, before = self.keys, self._line(file.relative)
        if before and not is_judged(row) and _is_judged_alike(before["row"], row):
            keys = {**keys, "judge": before["keys"]["judge"]}
            row = {**row, **_only(before["row"], lambda name: name.startswith(JUDGE))}
        line = {"path": file.relative, "size": file.size, "mtime_ns": file.mtime_ns, "keys": keys, "row": row}
        assert self._file is not None
        text = json.dumps(line).encode() + b"\n"
        self._replaced |= file.relative in self._places
        self._places[file.relative] = self._file.seek(0, os.SEEK_END)
        self._file.write(text)
        self._file.flush()

    def _line(self, path: str) -> dict[str, Any] | None:
        if path not in self._places:
            return None
        if self._file is None:
            with self._path.open("rb") as file:
                return _line_at(file, self._places[path])
        return _line_at(self._file, self._places[path])

    def _compact(self, file: BinaryIO) -> None:
        with opened_beside(self._path, sync=True) as new:
            for path, place in sorted(self._places.items(), key=lambda item: item[1]):
                file.seek(place)
                self._places[path] = new.tell()
                new.write(file.readline())


def score_keys(settings: Curation) -> dict[str, str]:
    """A hash for each stage over all that its scores depend on besides the image: code, packages, models, prompts."""
    asked = {"preliminary": [], "quality": _models(settings.models), "judge": _judge(settings.judge)}
    return {
        stage: _hash(_sources(CODE[stage]), [_version(name) for name in PACKAGES[stage]], *parts)
        for stage, parts in asked.items()
    }


def _places(path: Path) -> tuple[dict[str, int], bool]:
    """Where the last line of each path begins, and whether there are other lines; a cut line is taken off the file."""
    found: dict[str, int] = {}
    if not path.exists():
        return found, False
    lines = whole = 0
    with path.open("r+b") as file:
        for text in file:
            if not text.endswith(b"\n"):
                break
            line = _parsed(text)
            if line is not None:
                found[line["path"]] = whole
            lines += 1
            whole += len(text)
        file.truncate(whole)
    return found, lines > len(found)


def _line_at(file: BinaryIO, place: int) -> dict[str, Any] | None:
    file.seek(place)
    return _parsed(file.readline())


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
        return line if set(line) == {"path", "size", "mtime_ns", "keys", "row"} else None
    except ValueError:  # a disk that was full or lost power may leave a damaged line in the middle
        return None


def _is_judged_alike(before: Row, row: Row) -> bool:
    return is_judged(before) and bool(before["fingerprint"] == row["fingerprint"])


def _only(row: Row, keep: Callable[[str], bool]) -> Row:
    return {name: value for name, value in row.items() if keep(name)}


def _sources(modules: Iterable[ModuleType]) -> list[str]:
    return [hashlib.blake2b(Path(str(module.__file__)).read_bytes(), digest_size=16).hexdigest() for module in modules]


def _models(models: ScoreModels) -> list[object]:
    files = [models.niqe, models.clip, models.aesthetic]
    pyiqa = [[name, _identity(Path(file))] for name, file in sorted(models.pyiqa.items())]
    return [models.good_prompt, models.bad_prompt, [_identity(Path(name)) if name else None for name in files], pyiqa]


def _judge(model: JudgeModel) -> list[object]:
    where: list[object] = [model.endpoint]
    if model.folder:
        where = [_identity(Path(model.folder)), _version("torch"), _version("transformers")]
    return [*where, model.name, model.reply_tokens]


def _identity(path: Path) -> list[object]:
    """Names below a file or folder with sizes and modification times; the place itself does not count."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(file.relative_to(path).as_posix(), file.stat()) for file in files if file.is_file()]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # an extra
        return ""


def _hash(*parts: object) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
