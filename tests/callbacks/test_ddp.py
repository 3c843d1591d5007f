import os
import subprocess
import sys
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parents[2]


def test_two_processes_agree_and_rank_zero_alone_logs(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("ddp_run.py")), str(tmp_path)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr[-3000:]

    first, second = (torch.load(tmp_path / f"ema{rank}.pt", weights_only=True) for rank in (0, 1))
    assert set(first) == set(second) == {"trained.weight", "trained.bias"}
    for name, value in first.items():
        assert torch.equal(second[name], value), name

    assert len(list((tmp_path / "run").glob("events.out.tfevents.*"))) == 1
    tags = EventAccumulator(str(tmp_path / "run")).Reload().Tags()
    # six samples on two ranks: rank zero holds every other one, four images are more than it has
    assert {tag for tag in tags["images"] if tag.startswith("panel/")} == {"panel/crop0", "panel/crop2", "panel/crop4"}
    assert {"val/psnr", "speed/images_per_s"} <= set(tags["scalars"])
