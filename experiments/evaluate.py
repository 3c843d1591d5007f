"""Measure a checkpoint on test images: `python -m experiments.evaluate last.ckpt DATA` (make evaluate CKPT= DATA=).

DATA: a folder with HR/ and LR/, a folder of photographs from which the checkpoint's degradation makes lr, or an
embedded set: "bundled", or "bundled_large" for sizes of up to 1024 px.
"""

import argparse
import hashlib
from pathlib import Path
from typing import Any

import torch

from datamodules.benchmarks import Benchmark, open_benchmark
from datamodules.degradations.pipeline import PRESETS, DegradationPipeline
from experiments.checkpoints import load_system
from experiments.checks import pitch_of
from experiments.command_line import quiet, user_errors
from experiments.inference import autocast, pick_device
from experiments.measure import (
    STUDENT,
    Method,
    Seen,
    codec_methods,
    codec_round_trip,
    denoiser_methods,
    measure,
    original,
    real_time_methods,
    standard_metrics,
    student_methods,
)
from experiments.protocol import (
    JSON,
    MARKDOWN,
    default_folder,
    described,
    fingerprinted,
    protocol,
    provenance,
    report,
    results,
    save,
)
from experiments.result_pictures import PICTURES, ResultPictures
from experiments.schema import Experiment
from experiments.tables import markdown_table, summarise
from lightning_modules.autoencoder import Autoencoder
from lightning_modules.f16_decoder import F16Decoder
from lightning_modules.latent_flow import LatentFlow
from lightning_modules.networks.codec import Codec
from lightning_modules.one_step_flux import OneStepFlux
from lightning_modules.real_time_cnn import RealTimeCnn
from lightning_modules.super_resolution import SuperResolution


def evaluate(
    checkpoint: str,
    data: str,
    overrides: list[str],
    crop: int | None = None,
    crop_border: int | None = None,
    seen: Seen | None = None,
) -> tuple[str, dict[str, Any]]:
    """Measure a checkpoint's methods on a test set: the report as Markdown, and everything in it as plain values.

    crop: side in px of the centre squares that are measured, whole images for None. crop_border: px that PSNR and SSIM
    leave out at each side, the scale for None. seen: is shown every output, such as `ResultPictures`.
    """
    torch.backends.cudnn.allow_tf32 = False  # what the results call fp32 is fp32
    system, options = load_system(checkpoint, overrides)
    if options.trainer.threads:
        torch.set_num_threads(options.trainer.threads)
    device = pick_device(options)
    system = system.to(device)
    border = options.data.scale if crop_border is None else crop_border
    images = open_test_set(options, data, crop)
    methods, precision = methods_of(system, options), autocast(options, device)
    metrics = standard_metrics(options.perceptual, border, grid_of(system, options))
    digest = hashlib.blake2b(digest_size=8)
    scores = measure(methods, fingerprinted(images, digest), metrics, precision, device, len(images), seen)
    rows = summarise(scores, metrics)
    facts = {
        **provenance(checkpoint, data, digest.hexdigest(), device),
        "precision": precision_name(precision, device),
        "protocol": f"{described(options.data, images.paired, crop)} {protocol(options.perceptual, border)}",
    }
    return report(facts, markdown_table(rows, metrics), rows), results(facts, rows, scores)


def open_test_set(options: Experiment, data: str, crop: int | None) -> Benchmark:
    """The images of DATA; where they are no pairs, lr is made by the options' degradation, alike for every seed."""
    degrade = DegradationPipeline(PRESETS[options.data.degradation], options.data.scale)
    return open_benchmark(data, options.data.scale, degrade, crop=crop)


def methods_of(system: SuperResolution, options: Experiment) -> dict[str, Method]:
    """The rows of the table: a student or a network beside its references, or a codec's own round trip."""
    if isinstance(system, OneStepFlux):
        return student_methods({STUDENT: system})
    if isinstance(system, RealTimeCnn):
        return real_time_methods(system)
    if isinstance(system, LatentFlow | Autoencoder | F16Decoder):
        codec = system.codec if isinstance(system.codec, Codec) else Codec(system.codec)
        flow = denoiser_methods(system, 0) if isinstance(system, LatentFlow) else {}
        return {"codec(hr)": codec_methods(codec_round_trip(codec))["codec(hr)"], **flow, "hr": original}
    raise ValueError(f"system={options.system} cannot be evaluated")


def precision_name(precision: torch.autocast, device: torch.device) -> str:
    """What the methods compute in, as the results say it."""
    with precision:
        return "bf16 autocast" if torch.is_autocast_enabled(device.type) else "fp32"


def grid_of(system: SuperResolution, options: Experiment) -> int | None:
    """The pitch in px of the token grid that could show in the images; None for a network without tokens."""
    return None if isinstance(system, RealTimeCnn) else pitch_of(options)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a checkpoint on test images.")
    parser.add_argument("checkpoint", help="checkpoint of a run, or a released RT4KSR file (CKPT=)")
    parser.add_argument("data", help="folder of images, or of HR/ and LR/; or bundled, or bundled_large (DATA=)")
    parser.add_argument("overrides", nargs="*", default=[], help="key=value ... (SET=)")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for results.md and results.json; <run>/evaluate/<data> unless given, runs/evaluate/<file>/<data> "
        "for a checkpoint outside a run (OUT=)",
    )
    parser.add_argument("--crop", type=int, help="cut a centre square of at most so many px from hr")
    parser.add_argument("--crop-border", type=int, help="px left out at each side by PSNR and SSIM; else: the scale")
    parser.add_argument(
        "--pictures", action="store_true", help="save the middle of every output as PNG, too, in pictures/"
    )
    given = parser.parse_intermixed_args()
    quiet()
    with user_errors():
        for option, value, least in (("--crop", given.crop, 1), ("--crop-border", given.crop_border, 0)):
            if value is not None and value < least:
                raise ValueError(f"{option} {value}: expected a number of pixels from {least} on")
        pictures = ResultPictures() if given.pictures else None
        text, values = evaluate(given.checkpoint, given.data, given.overrides, given.crop, given.crop_border, pictures)
        folder = given.out or default_folder(given.checkpoint, given.data, values["data_fingerprint"])
        if pictures is not None:
            pictures.save(folder)
        save(folder, text, values)
        saved = [folder / PICTURES] if pictures is not None else []
        print("\n".join(map(str, [text, *saved, folder / MARKDOWN, folder / JSON])))


if __name__ == "__main__":
    main()
