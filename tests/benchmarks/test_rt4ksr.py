"""The floors against published numbers and counts by hand, the protocol, and the tables at small sizes."""

import json
import re
import sys
from argparse import ArgumentTypeError

import pytest
import torch

from benchmarks import rt4ksr
from benchmarks.rt4ksr import Case, case, compare, network_of, times
from benchmarks.rt4ksr_floor import HALF_RATES, Rates, Work, rates_of, work

CPU = torch.device("cpu")
H200 = HALF_RATES["NVIDIA H200"]
FULL_HD = (1080, 1920)


def test_work_and_floor_of_variant_s_at_1080p_are_the_published_ones():
    without, with_branch = (work(network_of("S", 2, hf), *FULL_HD, 2) for hf in (False, True))
    assert round(with_branch.flops / 1e9, 1) == 48.4
    assert round((with_branch.flops - without.flops) / 1e9, 1) == 8.1
    assert round(1e3 * with_branch.flops / H200.flops, 2) == 0.05
    assert round(1e3 * without.bytes / H200.bytes, 2) == 0.08
    assert without.floor(H200) == pytest.approx(1e3 * without.bytes / H200.bytes)


@pytest.mark.parametrize(("variant", "scale"), [("XXS", 2), ("S", 3), ("XL", 4)])
@pytest.mark.parametrize("hf_branch", [False, True])
def test_work_is_what_a_count_by_hand_gives(variant, scale, hf_branch):
    blocks, channels = {"XXS": (2, 24), "S": (4, 24), "XL": (6, 32)}[variant]
    pixels, out = 36 * 50, 3 * (2 * scale) ** 2
    body, head, end = blocks * channels**2, 12 * channels, channels**2 + channels * out
    values = (12 + channels) + blocks * 2 * channels + 2 * channels + (channels + out)
    if hf_branch:
        # lr and shallow features, the branch, and the sum
        head, end, values = 2 * head, end + channels**2, values + (12 + channels) + 2 * channels + channels
    expected = Work(2 * 9 * pixels * (head + body + end), 4 * pixels * values)
    assert work(network_of(variant, scale, hf_branch), 72, 100, 4) == expected


def test_the_floor_is_the_larger_of_both_times():
    assert Work(8, 3).floor(Rates(2.0, 1.0, "")) == 4e3
    assert Work(2, 3).floor(Rates(2.0, 1.0, "")) == 3e3


def test_rates_are_measured_where_none_are_published():
    rates = rates_of(CPU, torch.float32)
    assert "measured" in rates.source
    # any processor, however busy
    assert 1e8 < rates.flops < 1e14
    assert 1e7 < rates.bytes < 1e13


def test_warm_ups_are_not_timed_and_every_repeat_is():
    calls = []
    spent = times(calls.append, torch.zeros(1), warm_ups=3, repeats=5)
    assert len(calls) == 8
    assert len(spent) == 5
    assert all(0 <= milliseconds < 1e3 for milliseconds in spent)


def test_the_comparison_takes_turns_and_leaves_out_the_first_pass_of_each():
    order, ticks = [], iter(range(1000))
    runs = {name: lambda lr, name=name: order.append(name) for name in ("a", "b")}
    spent = compare(runs, torch.zeros(1), rounds=2, clock=lambda: float(next(ticks)))
    assert order == ["a"] * rt4ksr.PASSES + ["b"] * rt4ksr.PASSES + ["a"] * rt4ksr.PASSES + ["b"] * rt4ksr.PASSES
    assert spent == {name: [1e3] * 2 * (rt4ksr.PASSES - 1) for name in ("a", "b")}


def test_a_case_is_even_and_of_a_known_scale():
    assert case("720x1280x3") == Case(720, 1280, 3)
    assert str(case("720x1280x3")) == "720 x 1280, x3"
    for wrong in ("720x1280", "720x1281x2", "721x1280x2", "720x1280x5", "ax2x2", "2x2x2", ""):
        with pytest.raises(ArgumentTypeError, match="expected HEIGHTxWIDTHxSCALE"):
            case(wrong)


def run(monkeypatch, capsys, *options):
    monkeypatch.setattr(sys, "argv", ["rt4ksr", "--threads", str(torch.get_num_threads()), *options])
    rt4ksr.main()
    return capsys.readouterr().out


def test_the_comparison_prints_how_far_and_how_fast(monkeypatch, capsys):
    options = ["--tables", "compare", "--compare", "210x200x2", "--rounds", "1", "--leave-out", "compiled", "onnx"]
    said = run(monkeypatch, capsys, "--device", "cpu", *options)
    assert "210 x 200, x2, variant S, HF branch off, fp32, 2 passes each" in said
    rows = {line.split()[0]: [float(text) for text in line.split()[1:]] for line in said.splitlines()[-2:]}
    assert list(rows) == ["plain", "ours"]
    assert rows["plain"][1::2] == [1, 1]
    median, of_plain, *_, difference = rows["ours"]
    assert of_plain == pytest.approx(median / rows["plain"][0], rel=0.1)
    assert 0 < difference < 1e-5


@pytest.mark.slow
def test_a_row_of_the_protocol_in_a_process_of_its_own(monkeypatch, capsys):
    options = ["--tables", "protocol", "--cases", "64x96x3", "--hf", "off", "--warm-ups", "1", "--repeats", "3"]
    said = run(monkeypatch, capsys, "--device", "cpu", *options)
    assert "float32, 1 warm-ups, 3 repeats, medians" in said
    row = re.search(r"64 x 96, x3 +S +off +eager +(\S+) +(\S+) +(\S+) +(\S+) +(\S+)$", said, re.MULTILINE)
    milliseconds, fps, floor, ratio, peak = map(float, row.groups())
    assert fps == pytest.approx(1e3 / milliseconds, rel=0.1)
    assert ratio == pytest.approx(milliseconds / floor, rel=0.1, abs=0.1)
    assert 0 < peak < 1000


def test_a_child_prints_one_line_of_json(monkeypatch, capsys):
    said = run(monkeypatch, capsys, "--device", "cpu", "--child", "--cases", "32x32x2", "--hf", "on", "--repeats", "1")
    assert json.loads(said)["ms"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "mps"], "found --device mps; expected cpu, cuda or cuda:N"),
        (["--device", "cpu", "--modes", "graph", "--child"], "cuda_graph=True with device=cpu"),
        (["--device", "cpu", "--repeats", "0"], "found no --repeats"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(options, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rt4ksr", *options])
    with pytest.raises(SystemExit) as ended:
        rt4ksr.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("mode", list(rt4ksr.MODES))
def test_every_mode_runs_on_a_gpu(mode, monkeypatch, capsys):
    options = ["--cases", "64x96x2", "--hf", "off", "--modes", mode, "--warm-ups", "2", "--repeats", "3"]
    said = run(monkeypatch, capsys, "--device", "cuda", *options)
    assert re.search(rf"64 x 96, x2 +S +off +{re.escape(mode)} +\S+ +\S+ +\S+ +\S+ +\S+$", said, re.MULTILINE)
