"""Writes 16-bit RGB and RGBA PNG, which neither Pillow nor torchvision can write."""

import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def encode_png16(image: np.ndarray, icc: bytes | None = None, exif: bytes | None = None) -> bytes:
    """PNG bytes of a (H,W,C) uint16 image, C in 1..4 (grey, grey + alpha, RGB, RGBA).

    icc goes into an iCCP chunk, exif (TIFF bytes, without the "Exif" prefix) into eXIf. Source: W3C PNG
    specification, third edition.
    """
    if image.dtype != np.uint16 or image.ndim != 3 or image.shape[2] not in COLOUR_TYPES or 0 in image.shape:
        raise ValueError(f"a 16-bit PNG needs a non-empty (H,W,C) uint16 array, got {image.shape} {image.dtype}")
    height, width, channels = image.shape
    rows = np.ascontiguousarray(image.astype(">u2")).view(np.uint8).reshape(height, -1)
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = 2  # filter "Up": each byte minus the one above, modulo 256
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 16, COLOUR_TYPES[channels], 0, 0, 0)
    parts = [SIGNATURE, _chunk(b"IHDR", header)]
    if icc:
        parts.append(_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc)))
    if exif:
        parts.append(_chunk(b"eXIf", exif))
    parts += [_chunk(b"IDAT", zlib.compress(filtered.tobytes(), 4)), _chunk(b"IEND", b"")]
    return b"".join(parts)


def is_png16(head: bytes) -> bool:
    """Whether the first 26 bytes of a file are those of a PNG with 16 bits per channel."""
    return len(head) >= 26 and head.startswith(SIGNATURE) and head[24] == 16
