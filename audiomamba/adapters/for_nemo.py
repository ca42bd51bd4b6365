"""NeMo's form: channels first, called by keywords. Nothing here needs NeMo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from audiomamba.adapters.build import build_encoder
from audiomamba.encoder import MambaEncoder


class NeMoEncoder(nn.Module):
    """An encoder of a NeMo model, called as `ConformerEncoder`.

    Set `model.encoder` to one, or name it as `_target_` in the config. NeMo 3.0 makes only what its
    list of prefixes allows: append "audiomamba." to
    `nemo.core.classes.common.ALLOWED_TARGET_PREFIXES` before. It has no neural types, which are
    checked of NeMo's own modules only.

    Args:
        feat_in: Features a frame.
        encoder: A `MambaEncoder` that is shared, or a folder or Hugging Face id; None makes one.
        **options: Of `EncoderConfig`, for a new one.
    """

    def __init__(
        self, feat_in: int, encoder: MambaEncoder | str | Path | None = None, **options: Any
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(encoder, {**options, "d_input": feat_in})
        # By these names NeMo's models ask for them.
        self._feat_in = feat_in
        self._feat_out = self.d_model = self.encoder.config.d_model
        self.subsampling_factor = self.encoder.config.subsampling
        self._trainable: dict[str, bool] = {}  # what it was before `freeze`

    def forward(self, audio_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a padded batch.

        Args:
            audio_signal: Features, (batch, feat_in, time).
            length: Lengths, (batch,), integers. What follows in a row has no effect.

        Returns:
            (batch, d_model, time'), zero from the end of a row on, and its lengths, (batch,).

        Raises:
            ValueError: If a shape, a type or a length is wrong.
        """
        y, counts = self.encoder(audio_signal.transpose(1, 2), length)
        return y.transpose(1, 2), counts

    def freeze(self) -> None:
        """Train no parameter, in evaluation mode, as NeMo's models ask before they transcribe."""
        for name, parameter in self.named_parameters():
            self._trainable[name] = parameter.requires_grad
            parameter.requires_grad_(False)
        self.eval()

    def unfreeze(self, partial: bool = False) -> None:
        """Train again, in training mode, as NeMo's own modules do.

        Args:
            partial: Only what was trained before `freeze`; else every parameter.

        Raises:
            ValueError: If partial, and it is not frozen.
        """
        if partial and not self._trainable:
            raise ValueError("partial is True, but the encoder is not frozen; call freeze() before")
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not partial or self._trainable.get(name, True))
        self._trainable.clear()
        self.train()
