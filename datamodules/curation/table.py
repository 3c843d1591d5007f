"""The table of curation: one row per image in one Parquet file, byte-equal for equal rows."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.curation.rows import JUDGE, PRELIMINARY_SCORES, PYIQA, QUALITY_SCORES, Row
from datamodules.files import written_beside

TABLE = "curation.parquet"

_GROUP = 10_000
"""Rows that are turned into columns at once, which bounds the memory."""
_FILE: dict[str, pa.DataType] = {
    "path": pa.string(),
    "fingerprint": pa.string(),
    "bytes": pa.int64(),
    "width": pa.int32(),
    "height": pa.int32(),
    "format": pa.string(),
    "mode": pa.string(),
    "bit_depth": pa.int32(),
    "hash": pa.string(),
}
_JUDGED: dict[str, pa.DataType] = {
    "judge_keep": pa.bool_(),
    "judge_reason": pa.string(),
    "judge_error": pa.string(),
}
_DECIDED: dict[str, pa.DataType] = {
    "stage": pa.int32(),
    "verdict": pa.string(),
    "reason": pa.string(),
    "detail": pa.string(),
}


def write_table(rows: Iterable[Row], path: Path) -> None:
    """Write the rows, sorted by path, as one Parquet file that appears whole or not at all.

    Columns: path (posix, relative to the folder of images), fingerprint (blake2b of 16 bytes over the file, hex), size,
    header, perceptual hash, scores, pyiqa_<name> and judge_<criterion> where there are any, then stage (1-3, where it
    was decided), verdict ("keep" or "drop"), reason (a short code, "" for kept) and detail (one phrase).
    """
    ordered = sorted(rows, key=lambda row: row["path"])
    schema = _schema(ordered)
    with written_beside(path) as part, pq.ParquetWriter(part, schema, compression="zstd") as writer:
        for first in range(0, len(ordered), _GROUP):
            writer.write_table(pa.Table.from_pylist(ordered[first : first + _GROUP], schema=schema))


def read_table(path: Path) -> pa.Table:
    """The table as written; ValueError where there is none or the file is no such table."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path}: expected the table of a curation, found {error}; run make curate") from error
    missing = [name for name in (*_FILE, *_DECIDED) if name not in table.column_names]
    if missing:
        raise ValueError(f"{path}: expected the table of a curation, found no column {missing[0]}; run make curate")
    return table


def _schema(rows: Iterable[Row]) -> pa.Schema:
    found = sorted({name for row in rows for name in row})
    scores = (*PRELIMINARY_SCORES, *QUALITY_SCORES, *(name for name in found if name.startswith(PYIQA)))
    criteria = [name for name in found if name.startswith(JUDGE) and name not in _JUDGED]
    judged = {**dict.fromkeys(criteria, pa.int32()), **{name: _JUDGED[name] for name in _JUDGED if name in found}}
    return pa.schema({**_FILE, **dict.fromkeys(scores, pa.float64()), **judged, **_DECIDED})
