import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.throughput import Interval, Throughput, batch_size, peak_memory_gib

KEYS = {"data_wait_s", "degrade_s", "step_s", "images_per_s"}


def test_interval_arithmetic():
    interval = Interval()
    interval.add(gap=0.5, degrading=0.2, computing=1.0, images=4)
    interval.add(gap=0.3, degrading=0.2, computing=2.0, images=6)
    report = interval.report(world_size=3)
    assert report == pytest.approx({"data_wait_s": 0.2, "degrade_s": 0.2, "step_s": 1.5, "images_per_s": 30 / 3.8})


def test_wait_is_never_negative():
    interval = Interval()
    interval.add(gap=0.0, degrading=0.1, computing=0.9, images=1)
    assert interval.report()["data_wait_s"] == 0
    assert interval.report()["images_per_s"] == pytest.approx(1.0)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the reference, /proc/self/status, is Linux's")
def test_peak_memory_is_the_kernels_high_water_mark():
    status = Path("/proc/self/status").read_text()
    kib = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))
    assert peak_memory_gib(torch.device("cpu")) == pytest.approx(kib / 2**20, rel=0.05)


def test_batch_size_is_the_first_tensors():
    assert batch_size({"name": ["a"], "hr": torch.zeros(5, 3, 2, 2)}) == 5


class SlowPauses(Callback):
    """Half a second in validation and in a checkpoint: neither is data wait nor step time."""

    def on_validation_epoch_end(self, trainer, pl_module):
        time.sleep(0.5)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 4:
            trainer.save_checkpoint(trainer.default_root_dir + "/now.ckpt")
            time.sleep(0.5)


def test_scalars_per_interval_without_pauses(student, data, trainer_with, tmp_path):
    data.delay = 0.02
    trainer = trainer_with(Throughput(), SlowPauses(), max_steps=12, val_check_interval=3, default_root_dir=tmp_path)
    trainer.fit(student, data)
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    tags = {f"speed/{key}" for key in KEYS | {"peak_memory_gib"}}
    assert tags <= set(events.Tags()["scalars"])
    series = {tag: [event.value for event in events.Scalars(tag)] for tag in tags}
    assert [event.step for event in events.Scalars("speed/step_s")] == [1, 3, 5, 7, 9, 11]
    assert series["speed/degrade_s"] == pytest.approx([0.001] * 6)
    # two items of 20 ms per batch; the pauses of 500 ms would lift the interval's mean to 250 ms
    assert max(series["speed/data_wait_s"]) < 0.2
    assert series["speed/data_wait_s"][4] > 0.035
    assert max(series["speed/step_s"]) < 0.2
    assert series["speed/images_per_s"][4] < 50


def test_gradient_accumulation_reports_once_per_interval(student, data, trainer_with, tmp_path):
    trainer_with(Throughput(), accumulate_grad_batches=3, max_steps=4).fit(student, data)
    events = EventAccumulator(str(tmp_path / "run")).Reload().Scalars("speed/step_s")
    assert [event.step for event in events] == [1, 3]
