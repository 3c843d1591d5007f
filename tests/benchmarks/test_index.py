import sys

from benchmarks import index


def test_a_row_per_number_of_entries(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["index", "--counts", "100", "1000", "--look-ups", "50"])
    index.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert [row[0] for row in rows] == ["100", "1,000"]
    for row in rows:
        assert 0 < float(row[1]) < 2
        assert all(0 <= float(value) < 200 for value in row[2:5])
