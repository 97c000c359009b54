"""Attention rows as few bytes: logarithms in 16 bits or less, deflated.

A weight w > 0 becomes the whole number nearest to 1 + (ln w - floor) / step, a weight of 0 the
number 0, which no other weight becomes. High bytes go first, then low bytes, because the high ones
repeat. The page reads them with `decode.js`; `unpack_weights` does the same in numpy.
"""

import zlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

# Logarithms, not the weights: attention spans many powers of ten, and a reader compares ratios, so
# the relative error should be the same everywhere (2e-4 with 16 bits). 65,534 and 4,094 are 2^16 -
# 2 and 2^12 - 2: code 0 is the weight 0, code 1 the floor. Coarser codes do not take fewer bytes a
# number, but repeat more often and deflate better.
CODES = ((65534, 40), (4094, 30), (1022, 24), (180, 20))
"""(levels, halvings), finest first: steps between the floor and 1; the floor is 2^-halvings."""

# Higher levels take much longer and save about 1 %.
_DEFLATE = 6


@dataclass(frozen=True, slots=True)
class Packed:
    """Weights of one trace, flat, in the order of their steps.

    Attributes:
        data: High bytes of every code, then the low bytes, deflated (zlib).
        levels: Steps between the floor and 1.
        floor: Logarithm of the smallest weight that has a code; smaller ones above 0 get its code.
    """

    data: bytes
    levels: int
    floor: float

    @property
    def relative_error(self) -> float:
        """Largest relative error of a weight above the floor."""
        # Half a step, as codes are rounded to the nearest.
        return float(np.expm1(-self.floor / self.levels / 2))

    @property
    def n_bytes(self) -> int:
        """Size in the page, as base64."""
        # base64 writes 4 characters for every 3 bytes begun; -(-n // 3) rounds up.
        return 4 * -(-len(self.data) // 3)


def pack_weights(rows: Sequence[Float32[np.ndarray, "..."]], *, most_bytes: int) -> Packed:
    """The finest code that takes at most `most_bytes` in the page, else the coarsest."""
    flat = np.concatenate([row.ravel() for row in rows]) if rows else np.zeros(0, np.float32)
    for code in CODES[:-1]:
        packed = _packed(flat, *code)
        if packed.n_bytes <= most_bytes:
            return packed
    return _packed(flat, *CODES[-1])


def unpack_weights(packed: Packed) -> Float32[np.ndarray, " cell"]:
    """The weights that a reader of the page sees."""
    high, low = np.frombuffer(zlib.decompress(packed.data), np.uint8).reshape(2, -1)
    # Widened first: a shift of uint8 by 8 gives 0.
    codes = high.astype(np.int64) << 8 | low
    logs = packed.floor * (1 - (codes - 1) / packed.levels)
    return np.where(codes > 0, np.exp(logs), 0).astype(np.float32)


def base64(data: bytes) -> str:
    """Bytes as text of JSON."""
    return b64encode(data).decode("ascii")


def _packed(weights: Float32[np.ndarray, " cell"], levels: int, halvings: int) -> Packed:
    floor = float(-halvings * np.log(2))
    return Packed(_coded(weights, levels, floor), levels, floor)


def _coded(weights: Float32[np.ndarray, " cell"], levels: int, floor: float) -> bytes:
    # Weights below the floor count as the floor, not as 0: they are visible slots, and 0 is kept
    # for what is exactly 0.
    smallest = np.float32(np.exp(floor))
    # Clipped at 1 too, since float32 softmax may exceed it by a last digit and the code would run
    # over the largest. float64, since a step is 4e-4 of a logarithm.
    logs = np.log(np.clip(weights, smallest, 1.0), dtype=np.float64)
    codes = np.where(weights > 0, 1 + np.rint((1 - logs / floor) * levels), 0).astype(np.uint16)
    # High bytes of neighbours are alike and low bytes are noise: apart, the first deflate well.
    planes = np.concatenate([codes >> 8, codes & 255]).astype(np.uint8)
    return zlib.compress(planes.tobytes(), _DEFLATE)
