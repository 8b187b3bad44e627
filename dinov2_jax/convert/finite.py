"""Whether tensors hold numbers alone."""

from collections.abc import Mapping

import ml_dtypes
import numpy as np

from dinov2_jax import errors
from dinov2_jax.convert import tables

EXPONENTS = {
    np.dtype(np.float16): (np.uint16, 0x7C00),
    np.dtype(ml_dtypes.bfloat16): (np.uint16, 0x7F80),
    np.dtype(np.float32): (np.uint32, 0x7F800000),
    np.dtype(np.float64): (np.uint64, 0x7FF0000000000000),
}
"""Type -> its bits as an integer and the mask of its exponent, whose bits are all set
in NaN and infinity alone."""

PIECE = 1 << 18  # numbers at once: their bits stay in the processor's cache


def finite(tensor: np.ndarray) -> bool:
    """Whether a tensor of a type in EXPONENTS holds no NaN and no infinity.

    float64 must fit float32 too, in which everything is computed.
    """
    flat = np.asarray(tensor).reshape(-1)
    if flat.dtype == np.float64:
        with np.errstate(over="ignore"):
            flat = flat.astype(np.float32)
    integer, mask = EXPONENTS[flat.dtype]
    bits, mask = flat.view(integer), integer(mask)
    pieces = (bits[i : i + PIECE] for i in range(0, len(bits), PIECE))
    return all((piece & mask).max() != mask for piece in pieces)


def require(tensors: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError that names tensors with a NaN or an infinity.

    Args:
        tensors: name -> array of a type in EXPONENTS.
    """
    broken = [name for name, value in tensors.items() if not finite(value)]
    if broken:
        raise errors.InputError(
            f"{len(broken)} of {len(tensors)} tensors hold NaN or infinity: "
            f"{tables.some(broken)}. A run that diverged or a damaged file; give an "
            "earlier checkpoint, or download the file again."
        )
