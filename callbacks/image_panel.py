"""Rows of held-out images in TensorBoard: lr | sr | hr, and what else can be drawn from the same images."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

SEPARATOR = 2  # px between the images of a row


def image_row(images: Sequence[Tensor], separator: int = SEPARATOR) -> Tensor:
    """Put images of equal size side by side with white separators.

    images: (3, H, W) each, [0, 1]. Returns (3, H, n W + (n - 1) separator). Raises ValueError for unequal sizes.

    >>> image_row([torch.zeros(3, 4, 5), torch.ones(3, 4, 5)]).shape
    torch.Size([3, 4, 12])
    """
    sizes = {tuple(image.shape) for image in images}
    if len(sizes) != 1:
        raise ValueError(
            f"images of one row have the sizes {sorted(sizes)}, expected one size: see the module's panel()"
        )
    gap = images[0].new_ones(images[0].shape[0], images[0].shape[1], separator)
    parts = [part for image in images for part in (gap, image)]
    return torch.cat(parts[1:], dim=-1)


def centre(image: Tensor, side: int) -> Tensor:
    """The middle of (3, H, W), at most `side` px of each side.

    >>> centre(torch.zeros(3, 9, 4), 5).shape
    torch.Size([3, 5, 4])
    """
    height, width = (min(full, side) for full in image.shape[-2:])
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return image[:, top : top + height, left : left + width]


def to_uint8(image: Tensor) -> Tensor:
    """[0, 1] to rounded bytes; values out of range are clipped, NaN is black (SummaryWriter would truncate)."""
    return (image.float().nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)


def first_samples(batch: dict[str, Any], count: int) -> dict[str, Any]:
    """The batch cut to its first `count` samples: tensors and lists along their first axis."""
    return {key: value[:count] if isinstance(value, Tensor | list) else value for key, value in batch.items()}


def panel_of(pl_module: LightningModule, batch: dict[str, Any]) -> dict[str, Tensor]:
    """The module's named panel images (B, 3, H, W) in their order; ValueError if it has no method `panel`."""
    panel = getattr(pl_module, "panel", None)
    if not callable(panel):
        raise ValueError(f"{type(pl_module).__name__} has no method panel(batch), which the panel callbacks draw from")
    return panel(batch)


def tensorboard_writer(trainer: Trainer) -> SummaryWriter | None:
    """The writer of the trainer's first TensorBoardLogger; None without one and on every rank but zero."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return loggers[0].experiment if loggers and trainer.is_global_zero else None


def logging_step(trainer: Trainer) -> int:
    """The step at which Lightning's own scalars are logged: batches on which the generator stepped.

    The same with accumulation and with a discriminator, so that arms with and without one line up; in a module with
    several optimizers of its own, trainer.global_step may count each of them.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped


class PanelCallback(Callback):
    """Base of callbacks that draw the first `max_images` samples of each validation loader, every n validations.

    A subclass says what to draw in `pictures`; of images larger than `largest` px per side, as whole ones may be, it is
    given the centre. The module's `panel(batch)` runs on rank zero alone, hence may hold no
    collective. The sanity check draws nothing. Raises ValueError where a validation batch has no `name`.
    """

    def __init__(self, every_n_validations: int = 1, max_images: int = 4, largest: int = 1024) -> None:
        super().__init__()
        given = {"every_n_validations": every_n_validations, "max_images": max_images, "largest": largest}
        for key, value in given.items():
            if value < 1:
                raise ValueError(f"{key} is {value}, expected >= 1: change the option '{key}'")
        self.every_n_validations = every_n_validations
        self.max_images = max_images
        self.largest = largest
        self._validations = 0
        self._drawn = 0

    @abstractmethod
    def pictures(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        """From one sample's named images (3, H, W) to {tag group: picture (3, h, w)}, all in [0, 1]."""

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        writer = tensorboard_writer(trainer)
        if writer is None or trainer.sanity_checking or self._validations % self.every_n_validations:
            return
        if batch_idx == 0:
            self._drawn = 0
        if self._drawn < self.max_images:
            self._draw(trainer, pl_module, first_samples(batch, self.max_images - self._drawn), writer)

    def _draw(self, trainer: Trainer, pl_module: LightningModule, batch: dict[str, Any], writer: SummaryWriter) -> None:
        if "name" not in batch:
            raise ValueError(
                f"a validation batch has the keys {sorted(batch)}, expected 'name' among them for the panels"
            )
        # Hooks run outside the step's autocast context; the panel must show what validation_step computes.
        with trainer.precision_plugin.val_step_context():
            panel = panel_of(pl_module, batch)
        for index, name in enumerate(batch["name"]):
            images = {key: centre(value[index], self.largest).float() for key, value in panel.items()}
            for group, picture in self.pictures(images).items():
                writer.add_image(f"{group}/{name}", to_uint8(picture).cpu(), logging_step(trainer))
            self._drawn += 1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._validations += 1

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]


class ImagePanel(PanelCallback):
    """Logs the module's panel images of each held-out sample as one row under `panel/<name>`, left to right."""

    def pictures(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"panel": image_row([image.clamp(0, 1) for image in images.values()])}
