"""SpeechBrain's forms: a whole encoder for a recipe's modules, and layers inside a TransformerASR.

Lengths are relative there, and masks True on padding. Nothing here needs SpeechBrain.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audiomamba.adapters.build import build_encoder
from audiomamba.adapters.masks import kept_lengths
from audiomamba.encoder import MambaEncoder


class SpeechBrainEncoder(nn.Module):
    """A recipe's encoder, called as `EncoderWrapper`: module(features, wav_lens).

    SpeechBrain's losses count round(wav_lens * time') frames of a row. With `subsampling: 1`, as
    after a `ConvolutionFrontEnd`, it has as many; with 2 or 4 it may have one fewer, and the one
    that is counted is zero. `relative_lengths` are those that are counted exactly.

    Args:
        encoder: A `MambaEncoder` that is shared, or a folder or Hugging Face id; None makes one.
        **options: Of `EncoderConfig`, for a new one.

    Example:
        encoder: !new:audiomamba.adapters.for_speechbrain.SpeechBrainEncoder
            d_input: 640
            d_model: 144
            n_layers: 12
            subsampling: 1
    """

    def __init__(self, encoder: MambaEncoder | str | Path | None = None, **options: Any) -> None:
        super().__init__()
        self.encoder = build_encoder(encoder, options)

    def forward(self, x: Tensor, wav_lens: Tensor | None = None, pad_idx: int = 0) -> Tensor:
        """Encode a padded batch.

        Args:
            x: (batch, time, d_input), or (batch, time, features, channels), which is flattened.
            wav_lens: Lengths over time, floating point (batch,) from 0 to 1; None is all. What
                follows in a row has no effect.
            pad_idx: Not used.

        Returns:
            (batch, time', d_model), zero from the end of a row on.

        Raises:
            ValueError: If a shape, a type or a length is wrong.
        """
        x = x.flatten(2) if x.dim() == 4 else x
        lengths = None if wav_lens is None else absolute_lengths(wav_lens, x.shape[1])
        y: Tensor = self.encoder(x, lengths)[0]
        return y

    def relative_lengths(self, wav_lens: Tensor, time: int) -> Tensor:
        """Return the lengths of the output over its time, (batch,), of rows of `time` frames."""
        counts = self.encoder.output_lengths(absolute_lengths(wav_lens, time))
        return counts / max(1, time // self.encoder.config.subsampling)


class SpeechBrainLayers(nn.Module):
    """The layers inside a `TransformerASR`, in the place of its `encoder`.

    `encoder_module` there is one of three names, so build it with num_encoder_layers 0 and set
    `asr.encoder = SpeechBrainLayers(d_model=144)`. A dynamic chunk config makes a bidirectional
    encoder run in such chunks; the forward direction remembers all before, whatever its left
    context says.

    Args:
        d_model: Width of input and output.
        encoder: As for `SpeechBrainEncoder`; its d_input is d_model, its subsampling 1.
        **options: Of `EncoderConfig`, for a new one.
    """

    def __init__(
        self, d_model: int, encoder: MambaEncoder | str | Path | None = None, **options: Any
    ) -> None:
        super().__init__()
        sizes = {"d_input": d_model, "d_model": d_model, "subsampling": 1}
        self.encoder = build_encoder(encoder, {**options, **sizes})

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        pos_embs: Tensor | None = None,
        dynchunktrain_config: Any = None,
    ) -> tuple[Tensor, None]:
        """Encode a padded batch.

        Args:
            src: (batch, time, d_model).
            src_mask: Which frames may see which; of a causal transformer, or of chunks.
            src_key_padding_mask: Bool (batch, time), True on padding at the end of rows.
            pos_embs: Not used.
            dynchunktrain_config: Its chunk_size, in frames; None is the whole.

        Returns:
            (batch, time, d_model), and None in the place of attention maps.

        Raises:
            ValueError: If a shape or type is wrong, or a mask asks a bidirectional encoder to be
                causal.
        """
        causal = self.encoder.config.direction == "causal"
        if src_mask is not None and dynchunktrain_config is None and not causal:
            raise ValueError(
                f"src_mask is given, but direction is {self.encoder.config.direction!r}; set "
                "direction to 'causal', or causal to False in TransformerASR"
            )
        lengths = None
        if src_key_padding_mask is not None:
            lengths = kept_lengths(~src_key_padding_mask, src, "src_key_padding_mask")
        chunk = None if causal or dynchunktrain_config is None else dynchunktrain_config.chunk_size
        return self.encoder(src, lengths, chunk=chunk)[0], None


def absolute_lengths(wav_lens: Tensor, time: int) -> Tensor:
    """Return relative lengths (batch,) as counts of `time` frames, rounded as SpeechBrain does.

    Raises:
        ValueError: If they are integers, as other toolkits' are.
    """
    if not wav_lens.is_floating_point():
        raise ValueError(
            f"wav_lens is {wav_lens.dtype}; SpeechBrain's are relative: divide by the longest"
        )
    return torch.round(wav_lens * time).long()
