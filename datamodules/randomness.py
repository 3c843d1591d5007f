"""Randomness that belongs to the sample: a generator from (seed, epoch, index, crop) and a purpose."""

import hashlib
import struct
from collections.abc import Sequence

import torch


def generator_for(key: Sequence[int], purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by a stable hash of purpose and key.

    The same key and purpose give the same stream in every process and Python version; distinct purposes ("crop",
    "degradation") are independent, so adding a draw to one does not move another. CPU and CUDA streams differ.
    """
    payload = purpose.encode() + b"\0" + struct.pack(f"<{len(key)}q", *(int(part) for part in key))
    digest = hashlib.blake2b(payload, digest_size=8).digest()
    # 63 bits: manual_seed takes signed 64-bit values
    seed = int.from_bytes(digest, "little") >> 1
    return torch.Generator(device=device).manual_seed(seed)
