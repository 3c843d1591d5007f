"""Images, and shards packed from them."""

import shutil

import numpy as np
import pytest
from PIL import Image

from datamodules.image_io import list_images
from datamodules.shards.manifest import checksum_of
from datamodules.shards.plan import find_source, make_plan
from datamodules.shards.writer import Packing


def noise(height, width, seed):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def make_images(folder):
    """Twelve images of several formats, names and sizes."""
    (folder / "a.b").mkdir(parents=True)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(noise(60, 80, 0)).save(folder / "turned.jpg", exif=turned)
    Image.fromarray(noise(64, 48, 1)).save(folder / "a.b" / "two.dots.jpeg")
    Image.fromarray(noise(50, 70, 2)).save(folder / "a.b" / "with space é.png")
    Image.fromarray(noise(50, 51, 3)).save(folder / "z.webp", lossless=True)
    Image.fromarray(noise(40, 41, 4)).save(folder / "plain.bmp")
    Image.fromarray(noise(45, 46, 5)).save(folder / "a jpeg by content.png", "JPEG")
    for i in range(6):
        Image.fromarray(noise(48 + i, 64, 6 + i)).save(folder / f"{i}.png")
    return folder


def plan_of(folder, shard_bytes=25_000, curated=False):
    sources = [
        find_source(path, path.relative_to(folder).as_posix(), checksum_of(path.read_bytes()) if curated else "")
        for path in list_images(folder)
    ]
    return make_plan(str(folder), sources, shard_bytes)


def pack_folder(images, out, shard_bytes=25_000, progress=lambda count: None, curated=False):
    with Packing(plan_of(images, shard_bytes, curated), out) as packing:
        return packing.run(progress)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """Images and their shards, of which every test gets copies."""
    folder = tmp_path_factory.mktemp("originals")
    pack_folder(make_images(folder / "images"), folder / "shards")
    return folder


@pytest.fixture
def images(originals, tmp_path):
    return shutil.copytree(originals / "images", tmp_path / "images")


@pytest.fixture
def shards(originals, tmp_path):
    return shutil.copytree(originals / "shards", tmp_path / "shards")


@pytest.fixture
def packer():
    """The functions above, for tests that pack themselves."""
    return {"plan_of": plan_of, "pack": pack_folder, "contents": contents, "noise": noise}
