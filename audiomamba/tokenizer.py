"""Waveform to levels and back; the one place that knows the companding formulas."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    Array = TypeVar("Array", NDArray[Any], Tensor)
else:
    Array = TypeVar("Array")

Encoding = Literal["mu-law", "mu-law-sashimi", "linear"]


@dataclass(frozen=True)
class Tokenizer:
    """Quantise audio to levels, sample by sample.

    With m = levels - 1 and f(x) = sign(x) ln(1 + m|x|) / ln(1 + m), a sample x in [-1, 1] becomes

        "mu-law"          q = floor((f(x) + 1) / 2 · m + 1/2)
        "linear"          q = floor((x + 1) / 2 · m + 1/2)
        "mu-law-sashimi"  q = floor((sign(x') f(|x' + 1e-8|) + 1) / 2 · (levels - 0.01) + 0.005),
                          x' = 2 (x - min x) / (max x - min x + 1e-6) - 1 over the last axis

    and a level becomes the middle of its bin on the companded axis. "mu-law" is
    `torchaudio.functional.mu_law_encoding`, bit for bit on tensors. "mu-law-sashimi" is for
    comparison with numbers published for SaShiMi: it loses the gain and the offset of a clip, a
    piece of a clip encodes differently from the whole, and its levels are not those of "mu-law", so
    that bits per sample of the two cannot be compared.

    NumPy arrays and PyTorch tensors of any shape (..., samples) are taken, and the same kind comes
    back, a tensor on its own device. NumPy arrays get a correctly rounded logarithm. PyTorch's is
    off in the last bit now and then; up to 10 bits that moves no value of 16-bit audio to another
    level.

    Attributes:
        encoding: "mu-law", "mu-law-sashimi" or "linear".
        bits: 1 to 16.

    Raises:
        ValueError: If the encoding is unknown or the bits are out of range.

    Example:
        >>> Tokenizer().encode(np.array([-1.0, -0.5, 0.0, 0.5, 1.0])).tolist()
        [0, 16, 128, 239, 255]

    Source: the continuous form of ITU-T G.711's mu-law; for "mu-law-sashimi" state-spaces/s4,
    src/dataloaders/audio.py.
    """

    encoding: Encoding = "mu-law"
    bits: int = 8

    def __post_init__(self) -> None:
        if self.encoding not in get_args(Encoding):
            choices = ", ".join(get_args(Encoding))
            raise ValueError(f"encoding is {self.encoding!r}; choose one of {choices}")
        if not isinstance(self.bits, int) or not 1 <= self.bits <= 16:
            raise ValueError(f"bits is {self.bits!r}; it must be a whole number from 1 to 16")

    @property
    def levels(self) -> int:
        """Number of levels, 2 to the power of `bits`."""
        return 1 << self.bits

    @property
    def silence(self) -> int:
        """The level of 0.0 (in "mu-law-sashimi" the level a model starts from)."""
        return self.levels // 2

    @property
    def dtype(self) -> np.dtype[Any]:
        """What holds a level in NumPy and on disk: uint8, or little-endian uint16 above 8 bits."""
        return np.dtype(np.uint8 if self.bits <= 8 else "<u2")

    def encode(self, waveform: Array) -> Array:
        """Return the levels of a waveform.

        Args:
            waveform: Floating point, (..., samples), in [-1, 1]; only "mu-law-sashimi" rescales it.
                float64 is computed in float64, everything else in float32.

        Returns:
            Levels of the same shape: `dtype` in NumPy, int64 (an index) in PyTorch.

        Raises:
            ValueError: If the waveform is not floating point, or a sample is NaN, infinite or
                outside [-1, 1].
        """
        xp = _namespace(waveform)
        x: Any = _to_float(waveform, xp)
        _check_range(x)
        if self.encoding == "mu-law-sashimi":
            q = _quantise_sashimi(x, self.levels, xp)
        else:
            # In this order and with these types the arithmetic is torchaudio's, bit for bit.
            top = xp.asarray(self.levels - 1, dtype=x.dtype)
            q = ((x if self.encoding == "linear" else _compand(x, top, xp)) + 1) / 2 * top + 0.5
        return q.astype(self.dtype) if xp is np else q.to(xp.int64)  # type: ignore[no-any-return]

    def decode(self, tokens: Array) -> Array:
        """Return the waveform that levels stand for.

        Args:
            tokens: Levels of any integer type, (..., samples).

        Returns:
            float32 samples in [-1, 1] of the same shape.

        Raises:
            ValueError: If the tokens are not integers, or one lies outside 0 to `levels` - 1.
        """
        xp = _namespace(tokens)
        q: Any = tokens
        if not _is_integer(q, xp):
            raise ValueError(f"tokens are {q.dtype}; levels are integers")
        wrong = q[(q < 0) | (q > self.levels - 1)]
        if len(wrong):
            raise ValueError(
                f"a token is {int(wrong[0])}; {self.bits} bits have levels 0 to {self.levels - 1}"
            )
        centres: Any = _centres(self.encoding, self.levels)
        if xp is np:
            return centres[q]  # type: ignore[no-any-return]
        return xp.tensor(centres, device=q.device)[q.long()]  # type: ignore[no-any-return]


def _namespace(array: Any) -> Any:
    """Return torch or numpy, whichever made `array`, without importing torch."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return torch
    if isinstance(array, np.ndarray):
        return np
    raise ValueError(f"a {type(array).__name__} is neither a NumPy array nor a PyTorch tensor")


def _to_float(waveform: Any, xp: Any) -> Any:
    floating = waveform.dtype.kind == "f" if xp is np else waveform.is_floating_point()
    if not floating:
        raise ValueError(f"the waveform is {waveform.dtype}; it must be floating point in [-1, 1]")
    if waveform.dtype == xp.float64:
        return waveform
    return waveform.astype(np.float32) if xp is np else waveform.to(xp.float32)


def _is_integer(tokens: Any, xp: Any) -> bool:
    if xp is np:
        return tokens.dtype.kind in "iu"
    return not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == xp.bool)


def _check_range(x: Any) -> None:
    wrong = x[~(abs(x) <= 1)]  # NaN compares false
    if len(wrong):
        raise ValueError(
            f"a sample is {float(wrong[0]):.6g}; a waveform must be finite and lie in [-1, 1]"
        )


def _compand(x: Any, mu: Any, xp: Any) -> Any:
    log1p: Callable[[Any], Any] = _log1p if xp is np else xp.log1p
    return xp.sign(x) * log1p(mu * xp.abs(x)) / log1p(mu)


def _log1p(x: NDArray[Any]) -> NDArray[Any]:
    """Round log1p correctly: NumPy's own of float32 differs between machines."""
    rounded: NDArray[Any] = np.log1p(x, dtype=np.float64).astype(x.dtype)
    return rounded


def _quantise_sashimi(x: Any, levels: int, xp: Any) -> Any:
    if 0 in x.shape:
        return x
    low, high = xp.amin(x, axis=-1, keepdims=True), xp.amax(x, axis=-1, keepdims=True)
    x = -1 + 2 * (x - low) / (high - low + 1e-6)
    mu = xp.asarray(levels - 1, dtype=x.dtype)
    y = xp.sign(x) * _compand(xp.abs(x + 1e-8), mu, xp)
    return (y + 1) / 2 * (levels - 0.01) + 0.005


@lru_cache(maxsize=8)
def _centres(encoding: Encoding, levels: int) -> NDArray[np.float32]:
    """Return the waveform value of every level: the middle of its bin, expanded."""
    q = np.arange(levels, dtype=np.float64)
    mu = levels - 1
    unit = (q + 0.495) / (levels - 0.01) if encoding == "mu-law-sashimi" else q / mu
    y = 2 * unit - 1
    x = y if encoding == "linear" else np.sign(y) * np.expm1(np.abs(y) * np.log1p(mu)) / mu
    centres = x.astype(np.float32)
    centres.flags.writeable = False
    return centres
