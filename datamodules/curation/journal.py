"""What was measured, one line of JSON per image, written as soon as it is known: any end of a run loses little."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, BinaryIO

from datamodules import image_io
from datamodules.curation import (
    clip_scores,
    contact_sheet,
    duplicates,
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

JOURNAL = "journal.jsonl"


class Journal:
    """The rows measured so far below one output folder, by relative path.

    Rows are handed out for files of the same path, size and modification time; in them, scores of stage 2 only for the
    same model files and prompts, judgements only for the same judge. Scores of other code are measured anew. Floats
    come back exactly. A line that was cut by a kill is dropped.
    """

    def __init__(self, path: Path, settings: Curation) -> None:
        self.keys = score_keys(settings)
        self.measured = 0
        self._path = path
        self._file: BinaryIO | None = None
        self._lines = _read(path)

    def __enter__(self) -> "Journal":
        self._file = self._path.open("ab")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._file is not None
        self._file.close()

    def row(self, file: RawFile) -> Row | None:
        """What is known of a file and still holds, or None."""
        line = self._lines.get(file.relative)
        if line is None or [line["size"], line["mtime_ns"]] != [file.size, file.mtime_ns]:
            return None
        if line["keys"]["preliminary"] != self.keys["preliminary"]:
            return None
        row = line["row"]
        if line["keys"]["quality"] != self.keys["quality"]:
            row = _without(row, lambda name: name in QUALITY_SCORES or name.startswith(PYIQA))
        if line["keys"]["judge"] != self.keys["judge"] or not is_judged(row):
            row = _without(row, lambda name: name.startswith(JUDGE))
        return row

    def append(self, file: RawFile, row: Row) -> None:
        """Write a measured row at once; what may go otherwise next time (no read, no memory, a crash) is left out."""
        self.measured += 1
        if "fingerprint" not in row or row.get("failure") in ("out_of_memory", "crashed"):
            return
        line = {"path": file.relative, "size": file.size, "mtime_ns": file.mtime_ns, "keys": self.keys, "row": row}
        assert self._file is not None
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()


def score_keys(settings: Curation) -> dict[str, str]:
    """A hash for each stage over all that its scores depend on besides the image: code, model files, prompts."""
    quality, judging = settings.models, settings.judge
    code = [image_io, duplicates, measures, spectrum]
    return {
        "preliminary": _hash(_sources(code)),
        "quality": _hash(_sources([*code, niqe, clip_scores, pyiqa_scores]), _models(quality)),
        "judge": _hash(_sources([rubric, contact_sheet, vision_judge]), _judge(judging)),
    }


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The journal's lines by path, the last one of each; a cut line at the end is taken off the file."""
    if not path.exists():
        return {}
    found = {}
    with path.open("r+b") as file:
        whole = 0
        for text in file:
            if not text.endswith(b"\n"):
                break
            whole += len(text)
            line = _parsed(text)
            if line is not None:
                found[line["path"]] = line
        file.truncate(whole)
    return found


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
        return line if set(line) == {"path", "size", "mtime_ns", "keys", "row"} else None
    except ValueError:  # a disk that was full or lost power may leave a damaged line in the middle
        return None


def _without(row: Row, drop: Callable[[str], bool]) -> Row:
    return {name: value for name, value in row.items() if not drop(name)}


def _sources(modules: Iterable[ModuleType]) -> list[str]:
    return [hashlib.blake2b(Path(str(module.__file__)).read_bytes(), digest_size=16).hexdigest() for module in modules]


def _models(models: ScoreModels) -> list[object]:
    files = [models.niqe, models.clip, models.aesthetic, *models.pyiqa.values()]
    return [
        models.good_prompt,
        models.bad_prompt,
        sorted(models.pyiqa),
        [_identity(Path(name)) for name in files if name],
    ]


def _judge(model: JudgeModel) -> list[object]:
    where = _identity(Path(model.folder)) if model.folder else model.endpoint
    return [where, model.name, model.reply_tokens]


def _identity(path: Path) -> list[object]:
    """Names below a file or folder with sizes and modification times; the place itself does not count."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(file.relative_to(path).as_posix(), file.stat()) for file in files if file.is_file()]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def _hash(*parts: object) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
