"""SpeechBrain's forms: a whole encoder for a recipe's modules, and layers inside a TransformerASR.

Lengths are relative there, and masks True on padding. Nothing here needs SpeechBrain.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audiomamba.adapters.build import build_encoder
from audiomamba.adapters.masks import kept_lengths
from audiomamba.encoder import MambaEncoder
from audiomamba_kernels.ragged import zero_padding


class SpeechBrainEncoder(nn.Module):
    """A recipe's encoder, called as `EncoderWrapper`: module(features, wav_lens).

    SpeechBrain's losses count round(wav_lens * time') frames of a row. With `subsampling: 1`, as
    after a `ConvolutionFrontEnd`, these are the frames that it has. With 2 they may be one more,
    which is zero; with 4 one more, or one fewer, which leaves out the row's last: give losses
    `relative_lengths` in the place of wav_lens then, by which the frames are counted exactly.

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

    def forward(
        self,
        x: Tensor,
        wav_lens: Tensor | Sequence[float] | None = None,
        pad_idx: int = 0,
        dynchunktrain_config: Any = None,
    ) -> Tensor:
        """Encode a padded batch.

        Args:
            x: (batch, time, d_input), or (batch, time, features, channels), which is flattened.
            wav_lens: Lengths over time, floating point (batch,) from 0 to 1, a tensor or a list;
                None is all. What follows in a row has no effect.
            pad_idx: Not used.
            dynchunktrain_config: As for `SpeechBrainLayers`; its chunk_size is in output frames.

        Returns:
            (batch, time', d_model), zero from the end of a row on.

        Raises:
            ValueError: If a shape, a type or a length is wrong; lengths as for `absolute_lengths`.
        """
        x = x.flatten(2) if x.dim() == 4 else x
        lengths = None if wav_lens is None else absolute_lengths(wav_lens, x.shape[1], x.device)
        y: Tensor = self.encoder(x, lengths, **_chunks(self.encoder, dynchunktrain_config))[0]
        return y

    def relative_lengths(self, wav_lens: Tensor | Sequence[float], time: int) -> Tensor:
        """Return the lengths of the output over its time, (batch,), of rows of `time` frames."""
        counts = self.encoder.output_lengths(absolute_lengths(wav_lens, time))
        return counts / max(1, time // self.encoder.config.subsampling)


class SpeechBrainLayers(nn.Module):
    """The layers inside a `TransformerASR`, in the place of its `encoder`.

    `encoder_module` there is one of three names, so build it with num_encoder_layers 0 and set
    `asr.encoder = SpeechBrainLayers(d_model=144)`. A dynamic chunk config makes a bidirectional
    encoder run in such chunks, with its own look-ahead after each; the forward direction remembers
    all before, whatever the config's left context says.

    Args:
        d_model: Width of input and output.
        encoder: As for `SpeechBrainEncoder`; its d_input is d_model, its subsampling 1.
        output_hidden_states: As of the `TransformerASR` it is in.
        **options: Of `EncoderConfig`, for a new one.
    """

    def __init__(
        self,
        d_model: int,
        encoder: MambaEncoder | str | Path | None = None,
        *,
        output_hidden_states: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self.output_hidden_states = output_hidden_states
        sizes = {"d_input": d_model, "d_model": d_model, "subsampling": 1}
        self.encoder = build_encoder(encoder, {**options, **sizes})

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        pos_embs: Tensor | None = None,
        dynchunktrain_config: Any = None,
    ) -> tuple[Tensor, None] | tuple[Tensor, None, list[Tensor]]:
        """Encode a padded batch.

        Args:
            src: (batch, time, d_model).
            src_mask: Which frames may see which; of a causal transformer, or of chunks.
            src_key_padding_mask: Bool (batch, time), True on padding at the end of rows.
            pos_embs: Not used.
            dynchunktrain_config: Its chunk_size, in frames, is taken in the place of the encoder's
                chunk, and nothing of it by a causal encoder; None leaves the encoder's.

        Returns:
            (batch, time, d_model), zero from the end of a row on, and None in the place of
            attention maps. With `output_hidden_states` then a list of n_layers + 1 of that shape:
            src, and what each layer puts out, before the last norm.

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
        chunks = _chunks(self.encoder, dynchunktrain_config)
        if not self.output_hidden_states:
            return self.encoder(src, lengths, **chunks)[0], None
        layers, lengths = self.encoder.extract_features(src, lengths, **chunks)
        return self.encoder.norm(layers[-1]), None, [zero_padding(src, lengths), *layers]

    def make_streaming_context(self, dynchunktrain_config: Any) -> Any:
        """Raise NotImplementedError: a `TransformerASR` streams a Conformer only.

        It looks for the left context of attention, and may number frames anew in each chunk.
        """
        raise NotImplementedError(
            "a TransformerASR streams a Conformer only; stream the encoder of these layers itself: "
            "y, state = layers.encoder.stream(asr.custom_src_module(x), state), with positions "
            "added to what enters as in training, if any were"
        )


def absolute_lengths(
    wav_lens: Tensor | Sequence[float], time: int, device: torch.device | None = None
) -> Tensor:
    """Return relative lengths (batch,) as counts of `time` frames, rounded as SpeechBrain does.

    Args:
        wav_lens: Floating point, a tensor or a list.
        time: Frames of the longest.
        device: Of the result; None is that of wav_lens.

    Raises:
        ValueError: If they are integers, as other toolkits' are, or one makes less than 0 or more
            than `time` frames. On a GPU values are not looked at, which would wait for it, but
            bounded.
    """
    wav_lens = torch.as_tensor(wav_lens)
    if not wav_lens.is_floating_point():
        raise ValueError(
            f"wav_lens is {wav_lens.dtype}; SpeechBrain's are relative: divide by the longest"
        )
    counts = torch.round(wav_lens * time).long()
    if counts.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = wav_lens[(counts < 0) | (counts > time)]
        if len(wrong):
            raise ValueError(
                f"wav_lens holds {float(wrong[0]):g}; each must be 0 to 1, over the longest"
            )
    return counts.clamp(0, time).to(device)


def _chunks(encoder: MambaEncoder, dynchunktrain_config: Any) -> dict[str, int]:
    if dynchunktrain_config is None or encoder.config.direction == "causal":
        return {}
    return {"chunk": dynchunktrain_config.chunk_size, "lookahead": encoder.config.lookahead}
