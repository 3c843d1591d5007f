"""Reads the images that are packed, several at the same time, and sees that each can be trained on."""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from PIL import Image

from datamodules.cores import usable_cores
from datamodules.image_io import ImageHeader, ImageReadError, decode, read_header
from datamodules.shards.plan import Source

Packable = tuple[Source, bytes, ImageHeader]


def read_images(sources: Sequence[Source]) -> Generator[Packable, None, None]:
    """Every source with its bytes and header, in their order; ValueError for one that cannot be packed.

    An image is decoded, except where a fingerprint tells that curation has done so: one that is damaged further in
    would end a training hours later. Threads, as decoding leaves the interpreter free; no more images are read ahead
    than there are cores.
    """
    cores = usable_cores()
    ahead: deque[Future[Packable]] = deque()
    with _any_size(), ThreadPoolExecutor(cores) as pool:
        for source in sources:
            ahead.append(pool.submit(_read, source))
            if len(ahead) > cores:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _read(source: Source) -> Packable:
    data = source.read()
    try:
        if not source.fingerprint:
            decode(data, str(source.path))
        return source, data, read_header(data, str(source.path))
    except ImageReadError as error:
        raise ValueError(f"{error}; remove it, or let `make curate` leave out such files") from error


@contextmanager
def _any_size() -> Iterator[None]:
    """Pillow's own limit off for all threads: `image_io` has one, and turns this one off for one thread at a time."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
