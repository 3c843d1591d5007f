import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TITLES = ("start s", "start MB", "looked up MB", "drawn MB", "worker MB", "look-up us", "order s", "pickled MB")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is asked of /proc/self/statm")
def test_two_hundred_thousand_images_start_within_seconds_and_take_a_few_megabytes():
    """In a process of its own: what others have freed before would hide what is added."""
    command = [sys.executable, "-m", "benchmarks.index", "--counts", "100", "200000", "--look-ups", "500"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = [line.split() for line in run.stdout.splitlines()[3:]]
    assert [row[0] for row in rows] == ["100", "200,000"]
    few, many = (dict(zip(TITLES, map(float, row[1:]), strict=True)) for row in rows)
    assert many["start s"] < 5
    assert many["order s"] < 10
    added = {title: many[title] - few[title] for title in TITLES}
    assert 5 < added["start MB"] < 40  # the index has 16 MB
    assert added["looked up MB"] - added["start MB"] < 3
    assert 5 < added["drawn MB"] - added["looked up MB"] < 60  # an order of 3.2 million numbers has 13 MB
    assert added["worker MB"] < 60
    assert added["pickled MB"] < 20
