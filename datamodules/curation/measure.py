"""Everything that is measured on one image: a pure function of the file and the options, for any pool of processes."""

import contextlib
import functools
import hashlib
import math
import signal
import stat
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from datamodules.curation.clip_scores import clip_scores
from datamodules.curation.duplicates import perceptual_hash
from datamodules.curation.measures import preliminary_scores, quality_scores
from datamodules.curation.niqe import NiqeParameters, read_niqe_parameters
from datamodules.curation.pyiqa_scores import pyiqa_scores
from datamodules.curation.rows import JUDGE, Row
from datamodules.curation.settings import Curation, ScoreModels
from datamodules.curation.verdicts import preliminary_failure, quality_failure
from datamodules.curation.vision_judge import judge, load_judge
from datamodules.image_io import ImageReadError, decode, read_header

_ANY_SIZE = 2**62
_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_BYTES = 8 * 1024**3
"""Larger files are no photographs, and reading one could end the whole machine."""


LONGEST = 300
"""Seconds after which an image is given up: a decoder that a damaged file sends round in circles never ends."""


def measure_image(path: Path, relative: str, settings: Curation, known: Mapping[str, object], judging: bool) -> Row:
    """The row of one image, without a verdict: what `known` (an earlier row, or nothing) holds, and what it lacks.

    The file is read once: fingerprint, header, pixels, preliminary scores; the quality scores only if those pass their
    bounds, the judgement only if these pass theirs and `judging`. A file of which something cannot be had is no error:
    `failure` holds a short code ("unreadable", "out_of_memory", "crashed") and `failure_detail` a phrase; where the
    judging goes wrong, `judge_error` is one, and the scores stay. Raises ValueError and FileNotFoundError only where
    the judge's model cannot be loaded.
    """
    row: Row = {**known, "path": relative}
    try:
        image = _decoded(path, row, settings)
        if image is not None:
            _score(image, row, settings)
    except Exception as error:  # one odd file of many must not end the run
        if judging:  # it was measured before, and stays kept
            return {**known, "path": relative, **_not_judged(_phrase(error))}
        if isinstance(error, ImageReadError):
            return _failed(row, "unreadable", str(error))
        if _is_out_of_memory(error):
            return _failed(row, "out_of_memory", "the memory did not suffice to decode and measure it")
        return _failed(row, "crashed", _phrase(error))
    if image is not None and judging and quality_failure(row, settings.quality) is None:
        row |= _judgement(image, settings)
    return row


def measure_in_time(path: Path, relative: str, settings: Curation, known: Mapping[str, object], judging: bool) -> Row:
    """`measure_image` for a process of its own, which ends where an image takes more than LONGEST seconds; judging may
    take any time, as an endpoint has a limit of its own."""
    with ending_after(0 if judging else LONGEST):
        return measure_image(path, relative, settings, known, judging)


@contextlib.contextmanager
def ending_after(seconds: float) -> Iterator[None]:
    """End this process, also where it hangs in a library, unless the block is done in so many seconds; 0: never."""
    signal.setitimer(signal.ITIMER_REAL, seconds)  # nobody handles the signal, so the system ends the process
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def lacks(row: Row, settings: Curation) -> bool:
    """Whether `measure_image` would add scores to a row under these bounds."""
    if row.get("failure"):
        return False
    if "width" not in row:  # only its judgement is still good
        return True
    if "hash" not in row:  # it had more than max_pixels
        return row["width"] * row["height"] <= settings.preliminary.max_pixels
    return "sharpness" not in row and preliminary_failure(row, settings.preliminary) is None


def crashed_row(relative: str, known: Mapping[str, object], judging: bool) -> Row:
    """The row of an image over which a process died twice, the second time alone; what was only not judged is kept."""
    if judging:
        return {**known, "path": relative, **_not_judged("the process that judged it was killed, twice")}
    return _failed({"path": relative}, "crashed", f"the process that measured it was killed or took {LONGEST} s, twice")


def unnameable_row(relative: str) -> Row:
    """The row of a file whose name neither the table nor a list of paths can hold."""
    path = relative.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")
    return _failed({"path": path}, "name", "its name is not UTF-8 or holds a line break: rename it")


def warm_up(models: ScoreModels) -> None:
    """Load every model of stage 2 and score noise with it; ValueError or FileNotFoundError name a wrong file."""
    generator = torch.Generator().manual_seed(0)
    _quality(torch.randint(0, 256, (3, 512, 512), dtype=torch.uint8, generator=generator), models)


def _decoded(path: Path, row: Row, settings: Curation) -> Tensor | None:
    """(3,H,W) pixels, with fingerprint and header added to the row; None for more than max_pixels."""
    limit = settings.preliminary.max_pixels
    before = row.pop("fingerprint", None)  # a row without it is of a file that could not be read
    data = _bytes_of(path)
    fingerprint = hashlib.blake2b(data, digest_size=16).hexdigest()
    if before not in (None, fingerprint):  # replaced since it was last looked at
        for name in row.keys() - {"path"}:
            del row[name]
    row |= {"fingerprint": fingerprint, "bytes": len(data)}
    _check_chunks(data)
    header = read_header(data, "the file", _ANY_SIZE)
    row |= {"width": header.width, "height": header.height, "format": header.format, "mode": header.mode}
    if header.width * header.height > limit:
        return None
    image = decode(data, "the file", limit)
    row["bit_depth"] = image.bit_depth
    return image.pixels


def _score(pixels: Tensor, row: Row, settings: Curation) -> None:
    if "hash" not in row:
        row |= _finite(preliminary_scores(pixels)) | {"hash": perceptual_hash(pixels)}
    if "sharpness" not in row and preliminary_failure(row, settings.preliminary) is None:
        row |= _quality(pixels, settings.models)


def _quality(pixels: Tensor, models: ScoreModels) -> dict[str, float | None]:
    niqe = _niqe_parameters(models.niqe) if models.niqe else None
    return _finite(quality_scores(pixels, niqe) | clip_scores(pixels, models) | pyiqa_scores(pixels, models))


@functools.lru_cache(maxsize=1)
def _niqe_parameters(path: str) -> NiqeParameters:
    return read_niqe_parameters(Path(path))


def _judgement(pixels: Tensor, settings: Curation) -> Row:
    if settings.judge.folder:
        _load_judge(settings.judge.folder)
    try:
        judged = judge(pixels, settings.judge)
    except Exception as error:  # a processor or model that stumbles over one image
        return _not_judged(_phrase(error))
    scores = {f"{JUDGE}{name}": score for name, score in judged.scores.items()}
    return scores | {"judge_keep": judged.keep, "judge_reason": judged.reason, "judge_error": judged.error}


def _load_judge(folder: str) -> None:
    """Apart from judging: a model that cannot be loaded is wrong for every image, and ends the run."""
    try:
        load_judge(folder)
    except (ValueError, FileNotFoundError):
        raise
    except Exception as error:  # no room on the GPU, for one
        raise ValueError(f"judge.folder={folder}: the model cannot be loaded: {_phrase(error)}") from error


def _not_judged(why: str) -> Row:
    return {"judge_keep": None, "judge_reason": "", "judge_error": f"not judged: {why}"}


def _bytes_of(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a named pipe would wait for ever
            raise ImageReadError("it is a folder or device, expected a file")
        if status.st_size > _MOST_BYTES:
            raise ImageReadError(f"the file has {status.st_size} bytes, expected a photograph")
        return path.read_bytes()
    except OSError as error:
        raise ImageReadError(f"the file could not be read: {error.strerror}") from error


def _check_chunks(data: bytes) -> None:
    """ImageReadError where a chunk of a PNG does not have its checksum, which Pillow does not look at."""
    at = len(_PNG)
    while data.startswith(_PNG) and at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ImageReadError(f"the file is a PNG whose chunk at byte {at} is damaged, expected a whole image")
        if data[at + 4 : at + 8] == b"IEND":
            return
        at = end + 4


def _finite(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {name: float(score) if math.isfinite(score) else None for name, score in scores.items()}


def _failed(row: Row, code: str, detail: str) -> Row:
    return {**row, "failure": code, "failure_detail": detail}


def _phrase(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _is_out_of_memory(error: Exception) -> bool:
    # torch has no class of its own for a failed allocation on the CPU
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
