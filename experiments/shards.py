"""Pack images into shards: `python -m experiments.shards IN OUT` (make shards IN= OUT=).

IN: the OUT of `make curate`, of which the kept images are packed, or a plain folder of images. Stopped at any moment,
the same command goes on and ends with the same bytes.
"""

import argparse
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm
from yaml import YAMLError

from datamodules.image_io import list_images
from datamodules.shards.plan import Plan, find_source, make_plan
from datamodules.shards.writer import Packing
from experiments.command_line import quiet, user_errors

TABLE = "curation.parquet"
OPTIONS = "options.yaml"
LEAST_MB = 0.001
"""Of a shard, so that tests can have small ones."""


def pack(images: Path, folder: Path, shard_mb: float) -> None:
    """Pack IN to OUT and say what is done; errors as `Packing`, `plan_curated` and `plan_folder`."""
    if shard_mb < LEAST_MB:
        raise ValueError(f"SHARD_MB={shard_mb:g}: expected the length of a shard in MB, {LEAST_MB} or more")
    shard_bytes = round(shard_mb * 1e6)
    curated = (images / TABLE).is_file()
    plan = plan_curated(images, shard_bytes) if curated else plan_folder(images, shard_bytes)
    with Packing(plan, folder) as packing:
        print(_intention(plan, packing, folder, shard_mb))
        total, done = plan.packed_bytes, plan.packed_bytes - packing.missing_bytes
        with tqdm(total=total, initial=done, unit="B", unit_scale=True, disable=done == total) as bar:
            manifest = packing.run(bar.update)
    size = tqdm.format_sizeof(sum(shard.bytes for shard in manifest.shards))
    print(f"{manifest.samples} images in {len(manifest.shards)} shards, {size}B, fingerprint {manifest.fingerprint}")
    print(f"data.train={folder}")


def plan_folder(folder: Path, shard_bytes: int) -> Plan:
    """All images below a folder; ValueError where there is none."""
    paths = list_images(folder)
    if not paths:
        raise ValueError(
            f"IN={folder} holds no PNG, JPEG, WebP or BMP image and no {TABLE}; give a folder of images, or the OUT of "
            "`make curate`"
        )
    sources = [find_source(path, path.relative_to(folder).as_posix()) for path in paths]
    return make_plan(str(folder.resolve()), sources, shard_bytes)


def plan_curated(folder: Path, shard_bytes: int) -> Plan:
    """The images that a curation kept; ValueError where it kept none, or where files are not those it saw."""
    from datamodules.curation.table import read_table  # pyarrow is needed for this alone

    rows = read_table(folder / TABLE).select(["path", "verdict", "bytes", "fingerprint"]).to_pylist()
    kept = [row for row in rows if row["verdict"] == "keep"]
    if not kept:
        raise ValueError(f"IN={folder}: the curation kept none of {len(rows)} images; loosen its bounds with SET=")
    raw = _raw_folder(folder)
    sources = [find_source(raw / row["path"], row["path"], row["fingerprint"] or "") for row in kept]
    for source, row in zip(sources, kept, strict=True):
        if row["bytes"] is not None and source.length != row["bytes"]:
            found = f"{source.path} has {source.length} bytes and had {row['bytes']} when it was curated"
            raise ValueError(f"{found}; run `make curate` again")
    print(f"{len(kept)} of {len(rows)} images in {raw} were kept by the curation in {folder}")
    return make_plan(str(raw.resolve()), sources, shard_bytes)


def _raw_folder(folder: Path) -> Path:
    path = folder / OPTIONS
    raw = _raw_of(path) if path.is_file() else ""
    if not raw:
        raise ValueError(f"IN={folder} holds {TABLE}, but no {OPTIONS} with the key raw; run `make curate` again")
    if not Path(raw).is_dir():
        raise FileNotFoundError(
            f"the curated images are no longer at {raw}, which {path} names as raw; correct it there"
        )
    return Path(raw)


def _raw_of(path: Path) -> str:
    try:
        options = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read ({said}); correct it, or run `make curate` again") from error
    return str(options.get("raw") or "") if isinstance(options, dict) else ""


def _intention(plan: Plan, packing: Packing, folder: Path, shard_mb: float) -> str:
    size = tqdm.format_sizeof(plan.packed_bytes)
    what = f"{plan.samples} images, {size}B, in {len(plan.shards)} shards of {shard_mb:g} MB"
    kept = len(plan.shards) - len(packing.missing)
    return f"packing {what} to {folder}" + (f"; {kept} shards are finished" if kept else "")


def main() -> None:
    parser = argparse.ArgumentParser(description="Pack images into shards that training streams from.")
    parser.add_argument("images", type=Path, help="the OUT of make curate, or a folder of images (IN=)")
    parser.add_argument("folder", type=Path, help="new folder for the shards (OUT=)")
    parser.add_argument("--shard-mb", type=float, default=1000.0, help="length of a shard in MB (SHARD_MB=)")
    given = parser.parse_args()
    quiet()
    with user_errors():
        pack(given.images, given.folder, given.shard_mb)


if __name__ == "__main__":
    main()
