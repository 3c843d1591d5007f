import numpy as np
import pytest

from datamodules.curation.table import read_table, write_table, written_beside

DECIDED = {"stage": 2, "verdict": "keep", "reason": "", "detail": ""}


def row(path, **more):
    return {"path": path, "fingerprint": "00", "bytes": 2**40, "width": 3840, "height": 2160, **DECIDED, **more}


def test_equal_rows_in_any_order_give_equal_bytes_and_come_back_exactly(tmp_path):
    values = np.random.default_rng(0).random(50)
    rows = [row(f"{i:02}.jpg", chroma=float(value), noise=None) for i, value in enumerate(values)]
    write_table(rows, tmp_path / "a.parquet")
    write_table([dict(reversed(row.items())) for row in rows[::-1]], tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    table = read_table(tmp_path / "a.parquet")
    assert table["chroma"].to_pylist() == values.tolist()
    assert table["bytes"][0].as_py() == 2**40
    assert table["niqe"].null_count == table["noise"].null_count == 50
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


def test_columns_of_metrics_and_judgements_stand_where_there_are_any(tmp_path):
    judged = {"judge_content": 4, "judge_keep": True, "judge_reason": "fine", "judge_error": ""}
    write_table([row("a.jpg", pyiqa_piqe=1.5), row("b.jpg", **judged)], tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet")
    assert table["pyiqa_piqe"].to_pylist() == [1.5, None]
    assert table["judge_content"].to_pylist() == [None, 4]
    assert table["judge_keep"].to_pylist() == [None, True]
    write_table([row("a.jpg")], tmp_path / "t.parquet")
    assert not [name for name in read_table(tmp_path / "t.parquet").column_names if name.startswith(("pyiqa", "judge"))]


@pytest.mark.parametrize("content", [None, b"no parquet"])
def test_what_is_no_table_is_told_in_a_sentence(tmp_path, content):
    path = tmp_path / "curation.parquet"
    if content:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"curation\.parquet: expected the table of a curation, found"):
        read_table(path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "kept.txt"
    path.write_text("old")

    def fail():
        with written_beside(path) as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]
