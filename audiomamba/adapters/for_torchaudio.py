"""torchaudio's forms: a transcriber of `RNNT` beside Emformer, an encoder of waveforms as Wav2Vec2.

`Transcriber` is called as torchaudio's Conformer too. Lengths come back in the type in which they
are given, as torchaudio's do: its `rnnt_loss` takes int32 only. Nothing here needs torchaudio.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from audiomamba.encoder import EncoderState, MambaEncoder
from audiomamba.features import log_mel
from audiomamba.state import from_leaves, leaves
from audiomamba_kernels.ragged import check_lengths, zero_padding

FrontEnd = Callable[[Tensor, "Tensor | None"], tuple[Tensor, Tensor]]


class Transcriber(nn.Module):
    """What `torchaudio.models.RNNT` transcribes with, whole or in segments, as `Emformer` does.

    Each frame is given once: there is no right context to repeat, as a causal encoder needs none
    and one in chunks keeps what waits. It is not scripted (`torch.jit`).

    Args:
        encoder: Its d_model is the input width of RNNT's joiner and the output width of its
            predictor.

    Example:
        >>> rnnt = RNNT(Transcriber(encoder), predictor, joiner)  # doctest: +SKIP
        >>> RNNTBeamSearch(rnnt, blank=0)(features, length, beam_width=4)  # doctest: +SKIP
    """

    def __init__(self, encoder: MambaEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a padded batch, as `MambaEncoder.forward`; its lengths are of the type given."""
        y, counts = self.encoder(input, lengths)
        return y, counts.to(lengths.dtype)

    def infer(
        self, input: Tensor, lengths: Tensor, states: list[list[Tensor]] | None = None
    ) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
        """Encode the next segment of streams.

        Args:
            input: The next frames, (batch, any time, d_input).
            lengths: How many of them each row has, (batch,), integers. A row with fewer than others
                has ended, which only a causal encoder can bear; its state is then of no use.
            states: From the last call; None begins.

        Returns:
            The frames that are ready, (batch, 0 or more, d_model), zero from the end of a row on;
            how many each row has, (batch,), of the type of lengths; and the state: what waits, then
            what each layer carries, tensors with the batch in dimension 1.

        Raises:
            ValueError: If a shape, type or length is wrong, or the encoder does not stream.
        """
        counts = check_lengths(lengths, input)
        encoder = self.encoder
        state = encoder.initial_state(input.shape[0])
        if states is not None:
            state = _nested(states, state)
        waiting = state.features.shape[1]
        if encoder.config.direction == "causal":
            y, state = encoder.stream(zero_padding(input, counts), state)
            counts = encoder.output_lengths(waiting + counts)
        else:
            if counts.device.type == "cpu" and (counts != input.shape[1]).any():
                raise ValueError(
                    f"lengths are {lengths.tolist()} of {input.shape[1]} frames; streams in chunks "
                    "must be equally long, or be a batch each"
                )
            y, state = encoder.stream(input, state)
            counts = counts.new_full(counts.shape, y.shape[1])
        return zero_padding(y, counts), counts.to(lengths.dtype), _listed(state)

    def finish(self, states: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
        """Return what still waits at the end of streams in chunks, and its lengths, int64."""
        batch = states[0][0].shape[1]
        y = self.encoder.finish(_nested(states, self.encoder.initial_state(batch)))
        return y, torch.full((batch,), y.shape[1], device=y.device)


class WaveformEncoder(nn.Module):
    """Waveforms to vectors, called as `torchaudio.models.Wav2Vec2Model`.

    Args:
        encoder: What reads the front end's features.
        front_end: Maps (waveforms, lengths) to (features, lengths), as `WaveformFeatures` does;
            None is `log_mel` at 16 kHz with as many bands as the encoder takes.

    Example:
        >>> model = WaveformEncoder(MambaEncoder(EncoderConfig(d_model=32, n_layers=2))).eval()
        >>> layers, lengths = model.extract_features(0.1 * torch.randn(2, 16000))
        >>> len(layers), layers[0].shape
        (2, torch.Size([2, 24, 32]))
    """

    def __init__(self, encoder: MambaEncoder, front_end: FrontEnd | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.front_end = front_end or partial(log_mel, n_mels=encoder.config.d_input)

    def forward(
        self, waveforms: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Encode waveforms.

        Args:
            waveforms: Floating point, (batch, samples), in [-1, 1].
            lengths: Samples of each, (batch,), integers; None is all. What follows in a row has no
                effect.

        Returns:
            (batch, frames, d_model), zero from the end of a row on, and the frames of each row,
            (batch,), of the type of lengths, or None without lengths.

        Raises:
            ValueError: As the front end and the encoder.
        """
        y, counts = self.encoder(*self.front_end(waveforms, lengths))
        return y, None if lengths is None else counts.to(lengths.dtype)

    def extract_features(
        self, waveforms: Tensor, lengths: Tensor | None = None, num_layers: int | None = None
    ) -> tuple[list[Tensor], Tensor | None]:
        """Return what each layer, or the first `num_layers`, put out; lengths as `forward`."""
        features, counts = self.front_end(waveforms, lengths)
        layers, counts = self.encoder.extract_features(features, counts, num_layers)
        return layers, None if lengths is None else counts.to(lengths.dtype)


def _listed(state: EncoderState) -> list[list[Tensor]]:
    parts = [(state.features, state.frames, state.subsampling), *state.layers]
    return [[leaf[None] for leaf in leaves(part)] for part in parts]


def _nested(states: list[list[Tensor]], like: EncoderState) -> EncoderState:
    given = [leaf[0] for layer in states for leaf in layer]
    if len(given) > 1:  # what waits is of any length
        like = like._replace(features=given[0], frames=given[1])
    try:
        return from_leaves(like, given)
    except ValueError as error:
        raise ValueError(f"states are not those of the last call: {error}") from error
