"""ESPnet's form: an `AbsEncoder` where ESPnet is installed, else a module that looks the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from audiomamba.adapters.build import build_encoder
from audiomamba.encoder import MambaEncoder

if TYPE_CHECKING:
    Base = nn.Module

    class TooShortUttError(Exception):
        """An utterance that subsampling leaves nothing of."""

        def __init__(self, message: str, actual_size: int, limit: int) -> None: ...
else:
    # Each by itself: where the error stands depends on ESPnet's version.
    try:
        from espnet2.asr.encoder.abs_encoder import AbsEncoder as Base
    except ImportError:
        Base = nn.Module
    try:
        from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError
    except ImportError:
        try:  # to 202511
            from espnet.nets.pytorch_backend.transformer.subsampling import TooShortUttError
        except ImportError:

            class TooShortUttError(Exception):
                """An utterance that subsampling leaves nothing of."""

                def __init__(self, message: str, actual_size: int, limit: int) -> None:
                    super().__init__(message)
                    self.actual_size = actual_size
                    self.limit = limit


class ESPnetEncoder(Base):
    """An encoder of ESPnet2 (its name added to the choices of the task) or ESPnet3 (by `_target_`).

    Args:
        input_size: Features a frame, which ESPnet passes.
        encoder: A `MambaEncoder` that is shared, or a folder or Hugging Face id; None makes one.
        interctc_layer_idx: Layers, from 1 on, whose outputs are returned too, for losses on them.
            They are not fed back (`interctc_use_conditioning`).
        **options: Of `EncoderConfig`, for a new one.
    """

    def __init__(
        self,
        input_size: int,
        encoder: MambaEncoder | str | Path | None = None,
        *,
        interctc_layer_idx: Sequence[int] = (),
        **options: Any,
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(encoder, {**options, "d_input": input_size})
        self.interctc_layer_idx = list(interctc_layer_idx)
        self.interctc_use_conditioning = False
        layers = self.encoder.config.n_layers
        if not all(1 <= index < layers for index in self.interctc_layer_idx):
            raise ValueError(
                f"interctc_layer_idx is {self.interctc_layer_idx}; each must be 1 to {layers - 1}"
            )

    def output_size(self) -> int:
        """Return the width of the output."""
        return self.encoder.config.d_model

    def forward(
        self, xs_pad: Tensor, ilens: Tensor, prev_states: Tensor | None = None, ctc: Any = None
    ) -> tuple[Tensor | tuple[Tensor, list[tuple[int, Tensor]]], Tensor, None]:
        """Encode a padded batch.

        Args:
            xs_pad: (batch, time, input_size).
            ilens: Lengths, (batch,), integers. What follows in a row has no effect.
            prev_states: Not used.
            ctc: Not used.

        Returns:
            (batch, time', output_size), zero from the end of a row on; its lengths, (batch,); None.
            With `interctc_layer_idx` the first is a pair with a list of (layer, its output after
            the norm).

        Raises:
            TooShortUttError: If time is too short for a frame.
            ValueError: If a shape, a type or a length is wrong.
        """
        limit = self.encoder.config.subsampling
        if xs_pad.shape[1] < limit:
            raise TooShortUttError(
                f"has {xs_pad.shape[1]} frames and is too short for subsampling "
                f"(it needs at least {limit} frames)",
                xs_pad.shape[1],
                limit,
            )
        if not self.interctc_layer_idx:
            y, olens = self.encoder(xs_pad, ilens)
            return y, olens, None
        layers, olens = self.encoder.extract_features(xs_pad, ilens)
        norm = self.encoder.norm
        between = [(index, norm(layers[index - 1])) for index in self.interctc_layer_idx]
        return (norm(layers[-1]), between), olens, None
