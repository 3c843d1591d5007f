import io

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.image_panel import ImagePanel, image_row, to_uint8


def logged_images(folder):
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    return {tag: events.Images(tag) for tag in events.Tags()["images"]}


def decoded(event):
    return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))


def test_rows_of_the_first_samples_at_the_steps_of_the_scalars(student, data, trainer_with, tmp_path):
    trainer = trainer_with(ImagePanel(max_images=3), max_steps=12)
    trainer.fit(student, data)
    images = logged_images(tmp_path / "run")
    assert set(images) == {"panel/crop0", "panel/crop1", "panel/crop2"}
    scalars = EventAccumulator(str(tmp_path / "run")).Reload().Scalars("val/psnr")
    assert [event.step for event in images["panel/crop2"]] == [event.step for event in scalars]
    assert len(scalars) == 2
    row = decoded(images["panel/crop2"][-1])
    assert row.shape == (32, 3 * 32 + 2 * 2, 3)
    hr = data.val_dataloader().dataset[2]["hr"].numpy()
    np.testing.assert_array_equal(row[:, -32:], np.round(hr.transpose(1, 2, 0) * 255).astype(np.uint8))
    assert (row[:, 32:34] == 255).all()


def test_every_n_validations_counts_on_after_resume(student, data, trainer_with, tmp_path):
    def steps():
        return [event.step for event in logged_images(tmp_path / "run")["panel/crop0"]]

    trainer = trainer_with(ImagePanel(every_n_validations=2, max_images=1), max_steps=18)
    trainer.fit(student, data)
    assert steps() == [5, 17]
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed = trainer_with(ImagePanel(every_n_validations=2, max_images=1), max_steps=30)
    resumed.fit(student, data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    scalars = [event.step for event in EventAccumulator(str(tmp_path / "run")).Reload().Scalars("val/psnr")]
    assert len(scalars) == 5
    assert steps() == scalars[::2]


def test_without_tensorboard_nothing_happens(student, data, trainer_with, tmp_path):
    trainer_with(ImagePanel(), logger=False).fit(student, data)
    assert not (tmp_path / "run").exists()


def test_batch_without_names_is_explained(student, data, trainer_with):
    transfer = data.on_after_batch_transfer
    data.on_after_batch_transfer = lambda batch, index: {
        key: value for key, value in transfer(batch, index).items() if key != "name"
    }
    with pytest.raises(ValueError, match=r"\['hr', 'lr'\].*'name'"):
        trainer_with(ImagePanel()).fit(student, data)


def test_unequal_sizes_are_named():
    with pytest.raises(ValueError, match=r"\(3, 4, 4\), \(3, 8, 8\)"):
        image_row([torch.zeros(3, 4, 4), torch.zeros(3, 8, 8)])


def test_bytes_are_rounded_and_clipped():
    values = torch.tensor([-0.5, 0.0, 0.1, 0.999, 1.5, float("nan")])
    assert to_uint8(values).tolist() == [0, 0, 26, 255, 255, 0]


def test_values_below_one_name_the_option():
    with pytest.raises(ValueError, match="max_images"):
        ImagePanel(max_images=0)
