import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from datamodules.image_io import read_image, write_image
from datamodules.sr4k import SR4KDataModule

ROOT = Path(__file__).resolve().parents[2]


def half_with_noise(hr, generators):
    noise = torch.stack([torch.randn(3, 1, 1, generator=g, device=g.device) for g in generators])
    return F.avg_pool2d(hr, 2) + 0.01 * noise


def data_module(**changes):
    settings = {
        "scale": 2,
        "crop": 32,
        "batch_size": 4,
        "steps": 10,
        "crops_per_image": 2,
        "val_crop": 32,
        "val_count": 3,
        "degradation": half_with_noise,
    }
    return SR4KDataModule(**(settings | changes))


class Recorder(pl.LightningModule):
    """A real, tiny student that keeps what it was fed and its losses."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.student = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.seen, self.validated, self.fail_at = [], [], fail_at

    def training_step(self, batch, batch_idx):
        if batch_idx == self.fail_at:
            raise RuntimeError("power cut")
        sr = F.interpolate(self.student(batch["lr"]), scale_factor=2)
        loss = F.l1_loss(sr, batch["hr"])
        self.seen.append((batch["key"].tolist(), batch["lr"].clone(), float(loss)))
        return loss

    def validation_step(self, batch, batch_idx):
        self.validated += batch["name"]
        assert batch["lr"].shape[-1] * 2 == batch["hr"].shape[-1]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer_for(folder, steps, *callbacks):
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=steps,
        max_epochs=1 if not callbacks else None,
        logger=False,
        enable_checkpointing=bool(callbacks),
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )


def run(folder, data, steps=10, resume=None, fail_at=None, callbacks=()):
    pl.seed_everything(3, verbose=False)
    student = Recorder(fail_at)
    trainer = trainer_for(folder, steps, *callbacks)
    if fail_at is None:
        trainer.fit(student, datamodule=data, ckpt_path=resume, weights_only=True)
    else:
        with pytest.raises(RuntimeError, match="power cut"):
            trainer.fit(student, datamodule=data, weights_only=True)
    return student


def assert_same(these, those):
    assert len(these) == len(those)
    for (key, lr, loss), (other_key, other_lr, other_loss) in zip(these, those, strict=True):
        assert key == other_key
        assert torch.equal(lr, other_lr)
        assert loss == other_loss


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_resume_equals_the_uninterrupted_run_bit_for_bit(tmp_path, workers):
    whole = run(tmp_path / "whole", data_module(workers=workers))
    saver = pl.callbacks.ModelCheckpoint(tmp_path / "part", every_n_train_steps=3, save_top_k=-1, filename="{step}")
    first = run(tmp_path / "part", data_module(workers=workers), fail_at=8, callbacks=[saver])
    assert_same(first.seen, whole.seen[:8])
    rest = run(tmp_path / "rest", data_module(workers=workers), resume=tmp_path / "part" / "step=6.ckpt")
    assert_same(rest.seen, whole.seen[6:])
    assert len(whole.seen) == 10


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_checkpoint_of_an_exception_repeats_the_step_it_broke(tmp_path):
    whole = run(tmp_path / "whole", data_module())
    saver = pl.callbacks.OnExceptionCheckpoint(tmp_path / "part", "broken")
    run(tmp_path / "part", data_module(), fail_at=5, callbacks=[saver])
    rest = run(tmp_path / "rest", data_module(), resume=tmp_path / "part" / "broken.ckpt")
    assert_same(rest.seen, whole.seen[5:])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_finished_run_can_be_lengthened_twice(tmp_path):
    whole = run(tmp_path / "whole", data_module(steps=9), steps=9)
    seen, resume = [], None
    for steps in (3, 6, 9):
        saver = pl.callbacks.ModelCheckpoint(tmp_path / str(steps), save_last=True)
        seen += run(tmp_path, data_module(steps=steps), steps, resume, callbacks=[saver]).seen
        resume = tmp_path / str(steps) / "last.ckpt"
    assert_same(seen, whole.seen)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"exactly: seed was 0 in the checkpoint and is 1 now"),
        ({"batch_size": 2}, r"data\.batch_size was 4 .* is 2 now"),
        ({"crops_per_image": 3}, r"data\.crops_per_image was 2"),
        ({"crops_per_decode": 2}, r"data\.crops_per_decode was 1 .* is 2 now"),
        ({"procedural_share": 0.5}, r"data\.procedural_share was"),
        ({"crop_preference": "flat"}, r"data\.crop_preference was uniform .* is flat now"),
        (
            {"sample": "whole", "whole_side": 64, "procedural_share": 0.0},
            r"data\.sample was crop",
        ),
        ({"train": "folder"}, r"data\.train was"),
    ],
)
def test_resuming_on_other_data_is_refused_in_one_sentence(tmp_path, changes, message):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    saved = data_module()
    saved.setup("fit")
    other = data_module(**{key: str(tmp_path) if value == "folder" else value for key, value in changes.items()})
    other.setup("fit")
    with pytest.raises(ValueError, match=message) as caught:
        other.load_state_dict(saved.state_dict())
    assert "\n" not in str(caught.value)


def test_a_checkpoint_older_than_crops_per_decode_resumes_with_one_alone():
    saved = data_module()
    saved.setup("fit")
    older = {key: value for key, value in saved.state_dict().items() if key != "data.crops_per_decode"}
    saved.load_state_dict(older | {"position": 7})
    assert saved.state_dict()["position"] == 7
    other = data_module(crops_per_decode=2)
    other.setup("fit")
    with pytest.raises(ValueError, match=r"data\.crops_per_decode was 1 in the checkpoint and is 2 now"):
        other.load_state_dict(older)


def test_lr_follows_the_key_not_the_place_in_the_batch():
    data = data_module()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    whole = data.on_after_batch_transfer(dict(batch), 0)
    second = data.on_after_batch_transfer({"hr": batch["hr"][1:2], "key": batch["key"][1:2]}, 0)
    assert whole["lr"].shape == (4, 3, 16, 16)
    assert torch.equal(whole["lr"][1:2], second["lr"])
    with torch.autocast("cpu", torch.bfloat16):
        assert data.on_after_batch_transfer(dict(batch), 0)["lr"].dtype == torch.float32


def test_whole_images_are_batched_by_shape_and_degraded():
    data = data_module(sample="whole", whole_side=128, size_unit=16, procedural_share=0.0, batch_size=2)
    data.setup("fit")
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    shapes = {tuple(batch["hr"].shape[-2:]) for batch in batches}
    assert len(shapes) > 1, "the bundled photographs are of several shapes"
    for batch in batches:
        height, width = batch["hr"].shape[-2:]
        assert height % 16 == width % 16 == 0
        assert height * width <= 128**2
        assert batch["lr"].shape[-2:] == (height // 2, width // 2)
    assert data.training_crops()[0]["hr"].shape == (3, 32, 32)


def test_given_lr_is_kept():
    batch = {"hr": torch.zeros(1, 3, 4, 4), "lr": torch.ones(1, 3, 2, 2), "key": torch.zeros(1, 4)}
    assert data_module().on_after_batch_transfer(batch, 0) is batch


def test_validation_uses_the_held_out_photographs(tmp_path):
    student = Recorder()
    trainer_for(tmp_path, 1).validate(student, datamodule=data_module(val_count=4), verbose=False)
    assert student.validated == ["chelsea", "coffee", "rocket", "chelsea-2"]


@pytest.fixture
def pairs(tmp_path):
    """A folder of three pairs at scale 2, each of a size of its own."""
    for number, (height, width) in enumerate([(10, 14), (16, 12), (11, 9)]):
        for side, scale in (("HR", 2), ("LR", 1)):
            image = torch.rand(3, height * scale, width * scale, generator=torch.Generator().manual_seed(number))
            write_image(tmp_path / side / f"{number}.png", image)
    return tmp_path


def test_a_folder_of_pairs_is_validated_on_as_it_is(tmp_path, pairs):
    data = data_module(val=str(pairs), val_crop=32, val_count=100, val_batch_size=2)
    student = Recorder()
    trainer_for(tmp_path, 1).validate(student, datamodule=data, verbose=False)
    assert student.validated == ["0", "1", "2"]
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]
    assert [batch["hr"].shape for batch in batches] == [(1, 3, 20, 28), (1, 3, 32, 24), (1, 3, 22, 18)]
    for batch, number in zip(batches, range(3), strict=True):
        assert torch.equal(batch["lr"][0], read_image(pairs / "LR" / f"{number}.png").rgb)


def test_pairs_are_no_training_images(pairs):
    with pytest.raises(ValueError, match=r"data\.train=.* holds HR and LR images"):
        data_module(train=str(pairs)).setup("fit")


def test_pairs_of_another_scale_end_the_validation_in_one_sentence(pairs):
    data = data_module(val=str(pairs), scale=1, degradation="none")
    data.setup("validate")
    with pytest.raises(ValueError, match=r"pair 0: LR 14 x 10 and HR 28 x 20 do not differ by the scale 1"):
        next(iter(data.val_dataloader()))


def test_two_processes_validate_on_an_odd_number_of_pairs(tmp_path, pairs):
    command = [sys.executable, str(Path(__file__).with_name("pairs_run.py")), str(pairs), str(tmp_path)]
    store = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
    ranks = [
        subprocess.Popen(command, env=os.environ | store | {"LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=200)[1][-2000:] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(errors)
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [result["names"] for result in results] == [["0"], ["1", "2"]]
    means = [read_image(pairs / "HR" / f"{number}.png").rgb.mean().item() for number in range(3)]
    for result in results:
        assert result["means"] == pytest.approx([sum(means) / 3] * 2, abs=1e-6), "after each of the two validations"


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_loader_leaves_the_global_generator_alone():
    data = data_module()
    data.setup("fit")
    state = torch.get_rng_state()
    next(iter(data.train_dataloader()))
    assert torch.equal(state, torch.get_rng_state())


def test_default_degradation_gives_the_agreed_batch():
    data = data_module(scale=4, crop=64, val_crop=64, degradation="omgsr")
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    again = data.on_after_batch_transfer({"hr": batch["hr"], "key": batch["key"]}, 0)
    assert batch["lr"].shape == (4, 3, 16, 16)
    assert torch.equal(batch["lr"], again["lr"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 33}, r"data\.crop=33: expected a positive multiple of the scale 2"),
        ({"val_crop": 0}, r"data\.val_crop=0"),
        ({"batch_size": 0}, r"data\.batch_size=0"),
        ({"crops_per_decode": 0}, r"data\.crops_per_decode=0"),
        ({"procedural_share": 1.5}, r"data\.procedural_share=1\.5"),
        ({"sample": "half"}, r"data\.sample='half': expected one of crop, whole"),
        ({"sample": "whole"}, r"data\.procedural_share=0\.25: .* expected 0 at data\.sample=whole"),
        ({"crop_preference": "sky"}, r"data\.crop_preference='sky': expected one of uniform, detailed, flat"),
        ({"crop_candidates": 0}, r"data\.crop_candidates=0"),
        ({"degradation": "none"}, r"data\.degradation='none': expected one of .*omgsr"),
    ],
)
def test_settings_out_of_range_name_the_option(changes, message):
    with pytest.raises(ValueError, match=message):
        data_module(**changes)
