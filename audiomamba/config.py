"""Everything that defines a model, in one frozen dataclass that is saved beside its weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal, get_args

from audiomamba.tokenizer import Tokenizer

Mixer = Literal["s6", "lti", "s4", "attention"]

PLAIN = {"int": int, "bool": bool, "str": str}  # JSON keeps these apart; 8.0 is no width


@dataclass(frozen=True, kw_only=True)
class Tier:
    """The blocks at one rate of the U-Net.

    Attributes:
        mixer: "s6" (Mamba), "lti" (Mamba with constant step size, B and C: "Mamba-S4"), "s4" (S4 +
            MLP, SaShiMi's block) or "attention" (causal attention + MLP).
        complex: Whether A is complex ("s6", "lti"); "s4" always is.
        n_layers: Blocks on each path through this tier (the innermost tier has one path).
        d_state: Real state dimensions a channel; a complex model holds d_state / 2 conjugate pairs.
        d_conv: Width of the short convolution ("s6", "lti").
        expand: Inner width over model width: of a Mamba block, or of the MLP of "s4" and
            "attention".
        n_heads: Attention heads ("attention").
        context: Frames that attention sees, the present one included ("attention").
    """

    mixer: Mixer = "s6"
    complex: bool = False
    n_layers: int = 3
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    n_heads: int = 8
    context: int = 1024

    def __post_init__(self) -> None:
        if self.mixer not in get_args(Mixer):
            raise ValueError(f"mixer is {self.mixer!r}; choose one of {', '.join(get_args(Mixer))}")
        for name in ("n_layers", "d_state", "d_conv", "expand", "n_heads", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if (self.complex or self.mixer == "s4") and self.d_state % 2:
            raise ValueError(
                f"d_state is {self.d_state}; a complex state needs an even number (conjugate pairs)"
            )


def _mamba_s4_outside_s6_inside() -> tuple[Tier, ...]:
    outer = Tier(mixer="lti", complex=True)
    return (outer, outer, Tier(mixer="s6", complex=True))


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """An autoregressive waveform model.

    The default is the YouTubeMix shape of the Mamba paper (appendix E.4.1: width 64, 3 blocks a
    stage, pooling 16 and 16) with mixers that its ablation found among the best (figure 10:
    complex, time-invariant outside; a selective centre ties with a time-invariant one).

    Attributes:
        tokenizer: Waveform to levels and back.
        sample_rate: Hz.
        d_model: Width of the outermost tier; it doubles with every tier.
        tiers: Outermost first; the last is the centre.
        pools: Samples (frames) that become one frame of the next tier, one factor for each joint of
            two tiers.
    """

    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    sample_rate: int = 16000
    d_model: int = 64
    tiers: tuple[Tier, ...] = field(default_factory=_mamba_s4_outside_s6_inside)
    pools: tuple[int, ...] = (16, 16)

    def __post_init__(self) -> None:
        if len(self.tiers) != len(self.pools) + 1:
            raise ValueError(
                f"{len(self.tiers)} tiers need {len(self.tiers) - 1} pools; pools is {self.pools}"
            )
        if any(pool < 2 for pool in self.pools):
            raise ValueError(f"pools is {self.pools}; every factor must be at least 2")
        if self.d_model < 1 or self.sample_rate < 1:
            raise ValueError(
                f"d_model {self.d_model} and sample_rate {self.sample_rate} must be positive"
            )

    @property
    def period(self) -> int:
        """Samples in one frame of the centre."""
        return prod(self.pools)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Build from `to_dict`'s result.

        Raises:
            ValueError: If a key is missing or unknown (the first is named), or a value is out of
                range.
        """
        values = dict(checked(cls, values, "config"))
        values["tokenizer"] = Tokenizer(
            **checked(Tokenizer, values["tokenizer"], "config.tokenizer")
        )
        values["tiers"] = tuple(
            Tier(**checked(Tier, tier, f"config.tiers[{i}]"))
            for i, tier in enumerate(values["tiers"])
        )
        pools = values["pools"]
        if not (isinstance(pools, (list, tuple)) and all(type(pool) is int for pool in pools)):
            raise ValueError(f"config.pools is {pools!r}; it must be a list of whole numbers")
        values["pools"] = tuple(pools)
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Words:
    """Which takes of a model are wanted: those in which a classifier is sure of a word.

    Attributes:
        classifier: A shipped name, a folder, or a Hugging Face id (owner/name).
        sure: The least probability of a word, above 0 and at most 1.
    """

    classifier: str
    sure: float

    def __post_init__(self) -> None:
        if not 0 < self.sure <= 1:
            raise ValueError(f"sure is {self.sure}; it must be above 0 and at most 1")


def unet(
    d_model: int, n_layers: int, pools: tuple[int, ...], outer: Tier, centre: Tier
) -> ModelConfig:
    """Return a U-Net with `n_layers` blocks a path, `centre` innermost and `outer` elsewhere."""
    tiers = (outer,) * len(pools) + (centre,)
    return ModelConfig(
        d_model=d_model,
        pools=pools,
        tiers=tuple(dataclasses.replace(t, n_layers=n_layers) for t in tiers),
    )


def checked(cls: type[Any], values: Any, where: str) -> dict[str, Any]:
    """Return values that have the keys of a dataclass, and its plain types; `where` names them.

    Raises:
        ValueError: If a key is missing or unknown, or a value is of another type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where} is {values!r}; it must be an object")
    names = [f.name for f in dataclasses.fields(cls)]
    for name in [*names, *values]:
        if name not in values:
            raise ValueError(f"{where} lacks the key {name!r}")
        if name not in names:
            raise ValueError(f"{where} has the unknown key {name!r}; known are {', '.join(names)}")
    for f in dataclasses.fields(cls):
        value, kind = values[f.name], PLAIN.get(str(f.type))
        if kind is not None and type(value) is not kind:
            raise ValueError(f"{where}.{f.name} is {value!r}; it must be of type {kind.__name__}")
    return values
