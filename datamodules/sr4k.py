"""SR4KDataModule: photographs to seeded HR crops, degraded on the batch's device; exact resume."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.crops import PREFERENCES, CropDataset, ValidationCrops
from datamodules.degradations.pipeline import PRESETS, DegradationPipeline
from datamodules.pairs import ValidationPairs, has_pairs, paired_folder
from datamodules.randomness import generator_for
from datamodules.sampling import ResumableBatchSampler, even_batches, single_batches
from datamodules.sources import BUNDLED, Caches, ImageSource, open_source
from datamodules.synthetic import HELD_OUT_PHOTOGRAPHS, TRAIN_PHOTOGRAPHS
from datamodules.whole_images import WholeImages

Degradation = Callable[[Tensor, Sequence[torch.Generator]], Tensor]

SAMPLES = ("crop", "whole")
OLDER = {"data.crops_per_decode": 1, "data.sample": "crop", "data.crop_preference": "uniform"}
"""What checkpoints that were written before an option existed stand for."""


class SR4KDataModule(pl.LightningDataModule):
    """Batches {hr, key, lr} (validation: name too) for super-resolution; hr and lr float32 in [0,1].

    train, val: folders of images, shards (a folder or address, see `shards`), or "bundled" (scikit-image's photographs,
    see `synthetic`). A val with HR/ and LR/ inside (see `pairs`) is validated on as it is: whole images, each a batch
    of its own, lr as given; val_crop, val_count and val_batch_size say nothing then. cache, cache_gb: folder and
    largest size of the local copies of remote shards. decoded_mb: MB of decoded images that each process keeps.
    crop, val_crop: sides of the square HR crops in px, multiples of scale.
    batch_size: samples per step over all ranks. steps: batches of the whole run, which is one Lightning epoch.
    crops_per_image: crops of each image per pass over the data. crops_per_decode: how many of them follow one another,
    so that the image is decoded once for all; where it divides a rank's share of the batch none are torn apart.
    crop_preference: uniform, or the most detailed or flattest of crop_candidates places. sample: crop, or whole for
    whole images in buckets (see `WholeImages`) of at most whole_side^2 px, whose sides are multiples of size_unit.
    procedural_share: share of procedural images, 0-1; 0 for whole images.
    degradation: a preset's name, or a callable (hr, generators) -> lr.

    Every draw comes from the sample's key (seed, epoch, index, crop), so batches depend neither on ranks nor on
    workers nor on interruptions. The trainer needs use_distributed_sampler=False. The checkpoint keeps the position;
    resuming with other data, seed or batch_size raises ValueError. Settings out of range raise ValueError.
    """

    def __init__(
        self,
        train: str = "bundled",
        val: str = "bundled",
        scale: int = 4,
        crop: int = 256,
        batch_size: int = 8,
        steps: int = 1000,
        workers: int = 0,
        seed: int = 0,
        crops_per_image: int = 16,
        crops_per_decode: int = 1,
        procedural_share: float = 0.25,
        val_crop: int = 256,
        val_count: int = 6,
        val_batch_size: int = 1,
        degradation: str | Degradation = "omgsr",
        sample: str = "crop",
        whole_side: int = 1024,
        size_unit: int = 1,
        crop_preference: str = "uniform",
        crop_candidates: int = 4,
        cache: str = "runs/cache",
        cache_gb: float = 50.0,
        decoded_mb: int = 512,
    ) -> None:
        super().__init__()
        _check_crops(scale, crop, val_crop)
        _check_choices(sample, crop_preference, procedural_share)
        _check_counts(whole_side=whole_side, crop_candidates=crop_candidates)
        _check_counts(steps=steps, batch_size=batch_size, crops_per_image=crops_per_image, val_count=val_count)
        _check_counts(crops_per_decode=crops_per_decode)
        if not 0.0 <= procedural_share <= 1.0:
            raise ValueError(f"data.procedural_share={procedural_share}: expected a share between 0 and 1")
        self.train, self.val = train, val
        self.scale, self.crop, self.val_crop = scale, crop, val_crop
        self.batch_size, self.val_batch_size, self.val_count = batch_size, val_batch_size, val_count
        self.steps, self.workers, self.seed = steps, workers, seed
        self.crops_per_image, self.crops_per_decode = crops_per_image, crops_per_decode
        self.procedural_share = procedural_share
        self.sample, self.whole_side, self.size_unit = sample, whole_side, math.lcm(size_unit, scale)
        self.crop_preference, self.crop_candidates = crop_preference, crop_candidates
        self.caches = Caches(decoded_mb * 10**6, cache, int(cache_gb * 1e9))
        self.degradation = degradation if isinstance(degradation, str) else type(degradation).__name__
        self.degrade = _named_degradation(degradation, scale) if isinstance(degradation, str) else degradation
        self._source: ImageSource | None = None
        self.train_set: CropDataset | WholeImages | None = None
        self.val_set: ValidationCrops | ValidationPairs | None = None
        self._start_batch = 0
        self.degrade_seconds = 0.0  # of the latest batch, on the host's clock; read by the throughput callback

    def setup(self, stage: str | None = None) -> None:
        """Open the folders; errors and warnings as `sources.open_source`."""
        if stage in (None, "fit") and self.train_set is None:
            self._training_source().fingerprint()  # of the data as they are now, not at the first checkpoint
            self.train_set = self._whole_images() if self.sample == "whole" else self.training_crops()
        if self.val_set is None:
            self.val_set = self._open_validation()

    def training_crops(self) -> CropDataset:
        """The crops of the training images, also where whole images are trained on."""
        return CropDataset(
            self._training_source(),
            self.crop,
            self.seed,
            self.crops_per_image,
            self.procedural_share,
            self.crops_per_decode,
            self.crop_preference,
            self.crop_candidates,
        )

    def _whole_images(self) -> WholeImages:
        source, batch = self._training_source(), self.batch_size
        return WholeImages(source, self.whole_side, self.crop, self.size_unit, self.seed, batch, "data.whole_side")

    def _training_source(self) -> ImageSource:
        if self._source is None:
            if self.train != BUNDLED and (paired := paired_folder(Path(self.train))) is not None:
                raise ValueError(
                    f"data.train={self.train}: {paired} holds HR and LR images, but lr is made from hr in training; "
                    "give the HR images alone, for example a folder with links to the HR folders"
                )
            self._source = self._open(self.train, TRAIN_PHOTOGRAPHS, self.crop, "data.train", "data.crop")
        return self._source

    def _open(self, location: str, bundled: Sequence[str], least: int, option: str, size_option: str) -> ImageSource:
        return open_source(location, bundled, least, option, size_option, self.caches)

    def _open_validation(self) -> ValidationCrops | ValidationPairs:
        if has_pairs(self.val):
            return ValidationPairs(self.val, self.scale, self.seed, "data.val")
        held_out = self._open(self.val, HELD_OUT_PHOTOGRAPHS, self.val_crop, "data.val", "data.val_crop")
        return ValidationCrops(held_out, self.val_crop, self.seed, self.val_count)

    def train_dataloader(self) -> DataLoader[Any]:
        """This rank's batches from the position on, at first 0; its length is that of the whole run."""
        rank, world_size = self._place()
        sampler = ResumableBatchSampler(self.steps, self.batch_size, rank, world_size, self._start_batch)
        return self._loader(self.train_set, sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        """This rank's part of the fixed crops, as many batches on every rank, or of the pairs; each on one rank alone.

        Where the ranks do not divide their number they hold unequal numbers of samples: log torchmetrics objects then,
        as Lightning's own mean of logged numbers (2.6.6, sync_dist) averages the counts as integers and is off.
        """
        rank, world_size = self._place()
        if isinstance(self.val_set, ValidationPairs):
            return self._loader(self.val_set, single_batches(len(self.val_set), rank, world_size))
        return self._loader(self.val_set, even_batches(self.val_count, self.val_batch_size, rank, world_size))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Add lr, made from hr on the batch's device in fp32, each sample by its own generator."""
        if not isinstance(batch, dict) or "lr" in batch:
            return batch
        started = time.perf_counter()
        hr = batch["hr"].float()
        key = batch["key"].cpu()  # generators are made from it in every phase of a step: one transfer for all
        generators = [generator_for(sample, "degradation") for sample in key.tolist()]
        with torch.no_grad(), torch.autocast(hr.device.type, enabled=False):
            lr = self.degrade(hr, generators)
        self.degrade_seconds = time.perf_counter() - started
        return {**batch, "key": key, "hr": hr, "lr": lr}

    def state_dict(self) -> dict[str, Any]:
        """The number of global batches done, and what must not change at a resume."""
        # `processed`, not `ready`: a checkpoint written by an exception within a step must repeat that step
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total if self.trainer else None
        return {"position": progress.processed if progress else self._start_batch, **self._identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the saved position; ValueError where data, seed or batch size are not those of the run."""
        if self.train_set is None:  # only validating: the training data do not matter
            return
        saved = OLDER | state_dict
        for option, now in self._identity().items():
            if saved.get(option) != now:
                raise ValueError(
                    f"cannot resume exactly: {option} was {saved.get(option)} in the checkpoint and is {now} "
                    "now; restore it, or start anew from the weights with INIT="
                )
        self._start_batch = state_dict["position"]

    def _identity(self) -> dict[str, Any]:
        """What decides on the batches."""
        return {
            "data.train": self._training_source().fingerprint() if self.train_set else None,
            "seed": self.seed,
            "data.batch_size": self.batch_size,
            "data.sample": self.sample,
            "data.crop": self.crop,
            "data.scale": self.scale,
            "data.degradation": self.degradation,
            **(self._identity_of_crops() if self.sample == "crop" else self._identity_of_whole_images()),
        }

    def _identity_of_crops(self) -> dict[str, Any]:
        preferred = {"data.crop_candidates": self.crop_candidates} if self.crop_preference != "uniform" else {}
        return {
            "data.crops_per_image": self.crops_per_image,
            "data.crops_per_decode": self.crops_per_decode,
            "data.procedural_share": self.procedural_share,
            "data.crop_preference": self.crop_preference,
            **preferred,
        }

    def _identity_of_whole_images(self) -> dict[str, Any]:
        return {"data.whole_side": self.whole_side, "the model's size unit": self.size_unit}

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(self, dataset: Any, batches: Any) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else the loader draws from the global one, differently after a resume
        )


def _check_crops(scale: int, crop: int, val_crop: int) -> None:
    for option, side in (("crop", crop), ("val_crop", val_crop)):
        if side < scale or side % scale:
            raise ValueError(f"data.{option}={side}: expected a positive multiple of the scale {scale}")


def _check_choices(sample: str, crop_preference: str, procedural_share: float) -> None:
    for option, value, choices in (
        ("sample", sample, SAMPLES),
        ("crop_preference", crop_preference, PREFERENCES),
    ):
        if value not in choices:
            raise ValueError(f"data.{option}={value!r}: expected one of {', '.join(choices)}")
    if sample == "whole" and procedural_share:
        raise ValueError(
            f"data.procedural_share={procedural_share}: procedural images are square crops; expected 0 at "
            "data.sample=whole"
        )


def _check_counts(**counts: int) -> None:
    for option, count in counts.items():
        if count < 1:
            raise ValueError(f"data.{option}={count}: expected at least 1")


def _named_degradation(name: str, scale: int) -> Degradation:
    if name not in PRESETS:
        raise ValueError(f"data.degradation={name!r}: expected one of {', '.join(sorted(PRESETS))}")
    return DegradationPipeline(PRESETS[name], scale)
