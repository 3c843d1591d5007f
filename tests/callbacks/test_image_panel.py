import io

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from callbacks.image_panel import ImagePanel, centre, image_row, to_uint8


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


def whole_images(data):
    """Validation on whole images, each a batch of its own, as on a folder of pairs: 40 x 64, 20 x 24 and 80 x 24 px."""
    items = []
    for number, (height, width) in enumerate([(20, 32), (10, 12), (40, 12)]):
        generator = torch.Generator().manual_seed(number)
        lr, hr = torch.rand(3, height, width, generator=generator), torch.rand(3, 2 * height, 2 * width)
        items.append({"lr": lr, "hr": hr, "name": f"whole{number}"})
    data.val_dataloader = lambda: DataLoader(items, batch_sampler=[[0], [1], [2]])
    data.on_after_batch_transfer = lambda batch, _: (
        batch if "lr" in batch else batch | {"lr": batch["hr"][..., ::2, ::2]}
    )
    return items


def test_whole_images_of_unequal_size_show_their_centre(student, data, trainer_with, tmp_path):
    items = whole_images(data)
    trainer_with(ImagePanel(max_images=3, largest=32)).fit(student, data)
    images = logged_images(tmp_path / "run")
    rows = [decoded(images[f"panel/whole{number}"][0]) for number in range(3)]
    assert [row.shape for row in rows] == [(32, 3 * 32 + 4, 3), (20, 3 * 24 + 4, 3), (32, 3 * 24 + 4, 3)]
    for row, item, (top, left) in zip(rows, items, [(4, 16), (0, 0), (24, 0)], strict=True):
        height, width = row.shape[0], (row.shape[1] - 4) // 3
        hr = item["hr"][:, top : top + height, left : left + width].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(row[:, -width:], np.round(hr * 255).astype(np.uint8))


def test_the_centre_of_an_image():
    image = torch.arange(35).view(1, 5, 7)
    assert torch.equal(centre(image, 3), image[:, 1:4, 2:5])
    assert torch.equal(centre(image, 6), image[:, :, :6])
    assert torch.equal(centre(image, 7), image)


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
    for option in ("max_images", "largest"):
        with pytest.raises(ValueError, match=option):
            ImagePanel(**{option: 0})
