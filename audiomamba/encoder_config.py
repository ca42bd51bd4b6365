"""Everything that defines an encoder, in one frozen dataclass that is saved beside its weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from audiomamba.config import checked

Direction = Literal["causal", "inner", "outer"]
EncoderMixer = Literal["s6", "lti"]

POSITIVE = ("d_input", "d_model", "n_layers", "d_state", "d_conv", "expand")
OPTIONAL = ("feed_forward", "conv_kernel", "chunk", "lookahead")  # 0 is none
WHOLE = (*POSITIVE, *OPTIONAL, "subsampling")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """A speech encoder.

    The default is the small ConMamba of Jiang et al. 2024 (arXiv 2407.09732; its code: width 144,
    12 layers, Mamba "v2" of Vim, convolution 31) with a feed-forward of four times the width.

    Attributes:
        d_input: Features a frame.
        d_model: Width of the layers, and of the output.
        n_layers: Layers.
        direction: "causal": each frame sees those before it; "inner": both directions inside a
            block, which share projections and gate; "outer": two whole blocks a layer, joined by a
            linear map.
        mixer: "s6" (Mamba) or "lti" (Mamba with constant step size, B and C: "Mamba-S4").
        complex: Whether A is complex.
        d_state: Real state dimensions a channel; a complex model holds d_state / 2 conjugate pairs.
        d_conv: Width of the short convolution before a scan.
        expand: Inner width of a Mamba block over d_model.
        subsampling: Input frames that become one: 1, 2 or 4. Other than 1 it is made of
            two-dimensional convolutions, for which features have an order, as mel bands have.
        feed_forward: Inner width over d_model of the two half-step feed-forward modules of a layer;
            0 is none.
        conv_kernel: Width of the convolution module of a layer, in frames after subsampling; 0 is
            none. Odd unless causal.
        dropout: Of what each module adds to the residual stream, and inside feed-forward modules.
        stochastic_depth: Probability that a module of the last layer is skipped for an utterance,
            or for each chunk of one; it rises linearly over layers.
        chunk: Frames (after subsampling) that are put out together by a bidirectional encoder that
            streams; 0 is the whole utterance. "causal" needs none.
        lookahead: Frames (after subsampling) after a chunk that are seen before it is put out.
    """

    d_input: int = 80
    d_model: int = 144
    n_layers: int = 12
    direction: Direction = "inner"
    mixer: EncoderMixer = "s6"
    complex: bool = False
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    subsampling: int = 4
    feed_forward: int = 4
    conv_kernel: int = 31
    dropout: float = 0.1
    stochastic_depth: float = 0.0
    chunk: int = 0
    lookahead: int = 0

    def __post_init__(self) -> None:
        for name in WHOLE:
            value: Any = getattr(self, name)
            if type(value) is not int:  # which JSON takes; True is none
                raise ValueError(f"{name} is {value!r}; it must be a whole number, an int")
        for name, choices in (
            ("direction", get_args(Direction)),
            ("mixer", get_args(EncoderMixer)),
            ("subsampling", (1, 2, 4)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; choose one of "
                    + ", ".join(str(choice) for choice in choices)
                )
        for name in POSITIVE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in OPTIONAL:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 (none) or more")
        for name in ("dropout", "stochastic_depth"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a number from 0 to below 1")
        if self.complex and self.d_state % 2:
            raise ValueError(
                f"d_state is {self.d_state}; a complex state needs an even number (conjugate pairs)"
            )
        if self.direction != "causal" and self.conv_kernel and self.conv_kernel % 2 == 0:
            raise ValueError(
                f"conv_kernel is {self.conv_kernel}; it must be odd, to see as far ahead as "
                "back, or direction 'causal'"
            )
        check_chunk(self, self.chunk, self.lookahead)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncoderConfig:
        """Build from `to_dict`'s result.

        Raises:
            ValueError: If a key is missing or unknown (the first is named), or a value is out of
                range.
        """
        return cls(**checked(cls, values, "encoder"))


def check_chunk(config: EncoderConfig, chunk: int, lookahead: int) -> None:
    """Raise ValueError if an encoder cannot run in such chunks."""
    if chunk < 0 or lookahead < 0:
        raise ValueError(f"chunk is {chunk} and lookahead {lookahead}; each must be 0 or more")
    if lookahead and not chunk:
        raise ValueError(f"lookahead is {lookahead} without a chunk; set chunk, or lookahead to 0")
    if chunk and config.direction == "causal":
        raise ValueError(
            f"chunk is {chunk}, but a causal encoder streams without chunks; set chunk to 0, or "
            "direction to 'inner' or 'outer'"
        )
