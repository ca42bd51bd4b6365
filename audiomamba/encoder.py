"""A speech encoder of Mamba layers: padded batches, streams, and chunks with look-ahead."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from audiomamba import checkpoint
from audiomamba.encoder_config import EncoderConfig, check_chunk
from audiomamba.layers.encoder_layer import EncoderLayer, EncoderLayerState
from audiomamba.layers.subsampling import Subsampling
from audiomamba_kernels import Backend
from audiomamba_kernels.ragged import check_lengths, zero_padding


class EncoderState(NamedTuple):
    """What a stream carries. What waits has no fixed length: it depends on how much has come."""

    features: Tensor  # (batch, < subsampling, d_input): wait for more to make a frame
    frames: Tensor  # (batch, < chunk + lookahead, d_model): wait for more to make a chunk
    subsampling: tuple[Tensor, ...]
    layers: tuple[EncoderLayerState, ...]


class MambaEncoder(nn.Module):
    """Features of speech to a sequence of vectors, in either direction or causal.

    Rows of a batch do not see each other, nor their padding, whatever stands there: an utterance
    comes out as if it were alone. Subsampling, then layers (`EncoderLayer`), then a norm. In
    training, dropout and stochastic depth draw from PyTorch's global generator.

    A causal encoder streams (`stream`) as it runs over whole utterances. One in both directions
    streams in chunks: `config.chunk` frames are put out when `config.lookahead` frames after them
    are there; the forward direction carries its state on, the backward one begins anew at the end
    of the look-ahead. `forward` then computes the same, chunk after chunk, so that it can be
    trained.

    With features every 10 ms and the default subsampling of 4, chunks of 8 frames with a look-ahead
    of 2 wait at most 390 ms (`latency` is 39 input frames), a causal encoder 30 ms.

    `torch.compile` takes `forward` as one graph. On a CPU `torch.export` takes it with any batch,
    and with any time from 65 frames after subsampling on, if the example has as many and
    `prefer_deferred_runtime_asserts_over_guards=True`: kernels keep a state for every 64 frames,
    and one alone is another case to the exporter. Say so by `Dim("time", min=65 * subsampling)`,
    and pad what is shorter to that, with lengths, which hide it. A causal `stream` with a fixed
    number of frames, a multiple of `subsampling`, exports too; to ONNX with the backend
    "reference", whose loop is of operations that ONNX has, and without `complex`, which it has not.

    Args:
        config: What it is made of.
        backend: Which kernels run; None is the fastest. "torch" is plain PyTorch.

    Example:
        >>> encoder = MambaEncoder(EncoderConfig(d_input=80, d_model=32, n_layers=2)).eval()
        >>> y, lengths = encoder(torch.randn(2, 100, 80), torch.tensor([100, 61]))
        >>> y.shape, lengths.tolist()
        (torch.Size([2, 25, 32]), [25, 15])

    Source: Jiang et al. 2024 (arXiv 2407.09732), ConMamba; Zhang et al. 2024 (arXiv 2405.12609).
    """

    def __init__(self, config: EncoderConfig, *, backend: Backend | None = None) -> None:
        super().__init__()
        self.config = config
        self.subsampling = Subsampling(
            config.d_input, config.d_model, config.subsampling, config.dropout
        )
        self.layers = nn.ModuleList(
            EncoderLayer(config, config.stochastic_depth * (i + 1) / config.n_layers, backend)
            for i in range(config.n_layers)
        )
        self.norm = nn.RMSNorm(config.d_model, eps=1e-5)

    @property
    def latency(self) -> int | None:
        """How many input frames after it a frame waits for, at most; None: for the last one.

        Times the hop of the features it is a time; half a window of the features comes on top.
        """
        config = self.config
        if config.direction == "causal":
            return config.subsampling - 1
        return (config.chunk + config.lookahead) * config.subsampling - 1 if config.chunk else None

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Return how many frames come out of so many: lengths / subsampling, rounded down."""
        return lengths // self.config.subsampling

    def forward(
        self,
        features: Tensor,
        lengths: Tensor | None = None,
        *,
        chunk: int | None = None,
        lookahead: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encode a padded batch.

        Args:
            features: Floating point, (batch, time, d_input).
            lengths: Frames of each row, (batch,), integers from 0 to time; None is time. What
                follows in a row has no effect on results and gradients, be it NaN.
            chunk: In the place of the config's, as for training with many; 0 is the whole.
            lookahead: In the place of the config's; 0 if chunk is given.

        Returns:
            y (batch, time', d_model) with time' = time // subsampling, zero from the end of a row
            on; and the lengths of its rows, int64 (batch,). A row too short for a frame has none.

        Raises:
            ValueError: If a shape, a type, a length or the chunk is wrong.
            TypeError: If lengths are no tensor.
        """
        hidden, lengths = self._encode(features, lengths, chunk, lookahead)
        return zero_padding(self.norm(hidden[0]), lengths), lengths

    def extract_features(
        self,
        features: Tensor,
        lengths: Tensor | None = None,
        num_layers: int | None = None,
        *,
        chunk: int | None = None,
        lookahead: int | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Return what each layer puts out; the norm after the last is not applied.

        Args:
            features: As for `forward`.
            lengths: As for `forward`.
            num_layers: How many layers run; None is all.
            chunk: As for `forward`.
            lookahead: As for `forward`.

        Returns:
            `num_layers` tensors (batch, time', d_model), zero from the end of a row on; and the
            lengths of their rows, int64 (batch,).

        Raises:
            ValueError: As `forward`, or if there are not so many layers.
        """
        most = self.config.n_layers
        if num_layers is not None and not 1 <= num_layers <= most:
            raise ValueError(f"num_layers is {num_layers}; it must be 1 to {most}, or None for all")
        hidden, lengths = self._encode(features, lengths, chunk, lookahead, num_layers, every=True)
        return [zero_padding(h, lengths) for h in hidden[1:]], lengths

    def hidden_states(
        self, features: Tensor, lengths: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Return the frames that enter the first layer, then what each layer puts out.

        The last is after the norm, as `forward` returns it: the list of Hugging Face's models.

        Args:
            features: As for `forward`.
            lengths: As for `forward`.

        Returns:
            n_layers + 1 tensors (batch, time', d_model), zero from the end of a row on; and the
            lengths of their rows, int64 (batch,).

        Raises:
            ValueError: As `forward`.
        """
        hidden, lengths = self._encode(features, lengths, None, None, every=True)
        hidden[-1] = self.norm(hidden[-1])
        return [zero_padding(h, lengths) for h in hidden], lengths

    def initial_state(self, batch: int) -> EncoderState:
        """Return the state of streams before their first frame."""
        like = self.norm.weight
        layers = [layer for layer in self.layers if isinstance(layer, EncoderLayer)]
        return EncoderState(
            like.new_zeros(batch, 0, self.config.d_input),
            like.new_zeros(batch, 0, self.config.d_model),
            self.subsampling.initial_state(batch),
            tuple(layer.initial_state(batch) for layer in layers),
        )

    def stream(
        self, features: Tensor, state: EncoderState | None = None
    ) -> tuple[Tensor, EncoderState]:
        """Encode the next frames of streams; however they are cut, the same comes out.

        Args:
            features: The next frames, (batch, any time, d_input).
            state: From the last call; None begins.

        Returns:
            The frames that are ready, (batch, 0 or more, d_model), and the state after them. Those
            of a causal encoder are those of `forward` over all; of one in both directions too, once
            `finish` has put out the last ones.

        Raises:
            ValueError: If a shape or type is wrong, the state is of another batch, or a
                bidirectional encoder has no chunk.
        """
        self._check(features)
        config = self.config
        if config.direction != "causal" and not config.chunk:
            raise ValueError(
                f"chunk is 0 and direction {config.direction!r}: the backward direction begins at "
                "the last frame; set chunk (and lookahead), or direction to 'causal'"
            )
        batch = features.shape[0]
        state = self.initial_state(batch) if state is None else state
        if state.features.shape[0] != batch:
            raise ValueError(
                f"the state is of {state.features.shape[0]} streams and the features of {batch}; "
                "go on with as many as before, or begin with None"
            )
        features = torch.cat([state.features.to(features.dtype), features], dim=1)
        usable = features.shape[1] - features.shape[1] % config.subsampling
        frames, subsampling = state.frames, state.subsampling
        if usable:
            new, subsampling = self.subsampling(features[:, :usable], subsampling)
            frames = torch.cat([frames.to(new.dtype), new], dim=1)
        hidden, layers = self._run(
            frames, state.layers, None, config.chunk, config.lookahead, final=False
        )
        assert layers is not None
        waiting = features[:, usable:].to(state.features.dtype)
        frames = frames[:, hidden[0].shape[1] :].to(state.frames.dtype)
        return self.norm(hidden[0]), EncoderState(waiting, frames, subsampling, layers)

    def finish(self, state: EncoderState) -> Tensor:
        """Return the frames that still wait at the end of streams, (batch, 0 or more, d_model).

        They are those of a bidirectional encoder's last chunks, whose look-ahead ends early.
        """
        config = self.config
        hidden, _ = self._run(state.frames, state.layers, None, config.chunk, config.lookahead)
        y: Tensor = self.norm(hidden[0])
        return y

    def save_pretrained(self, directory: str | Path) -> None:
        """Write a folder that `from_pretrained` reads: config.json and model.safetensors."""
        values = {"encoder": self.config.to_dict()}
        checkpoint.write(directory, values, self.state_dict(), torch.float32)

    @classmethod
    def from_pretrained(cls, name: str | Path, *, backend: Backend | None = None) -> MambaEncoder:
        """Load an encoder, on the CPU, in float32, in evaluation mode.

        Args:
            name: A folder, or a Hugging Face id (owner/name).
            backend: As for the class.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If the files are damaged, or are of another model.
        """
        directory = checkpoint.find(name, "encoder")
        config = checkpoint.read(directory, "encoder", EncoderConfig.from_dict)
        return checkpoint.restore(directory, lambda: cls(config, backend=backend))

    def _encode(
        self,
        features: Tensor,
        lengths: Tensor | None,
        chunk: int | None,
        lookahead: int | None,
        num_layers: int | None = None,
        *,
        every: bool = False,
    ) -> tuple[list[Tensor], Tensor]:
        """Return what the last layer puts out of a padded batch, and the lengths of its rows.

        If `every`, what enters the first layer and what each puts out. What stands in the padding
        of the result is finite and of no use.
        """
        self._check(features)
        if lookahead is None:
            lookahead = self.config.lookahead if chunk is None else 0
        chunk = self.config.chunk if chunk is None else chunk
        check_chunk(self.config, chunk, lookahead)
        batch, steps, _ = features.shape
        counts = None
        if lengths is not None:
            lengths = check_lengths(lengths, features)
            features = zero_padding(features, lengths)
            counts = self.output_lengths(lengths)
        if steps >= self.config.subsampling:
            frames, _ = self.subsampling(features)
        else:
            frames = features.new_zeros(batch, 0, self.config.d_model)
        hidden, _ = self._run(frames, None, counts, chunk, lookahead, num_layers, every=every)
        if every:
            hidden = [frames, *hidden]
        if counts is None:
            counts = torch.full((batch,), frames.shape[1], device=frames.device)
        return hidden, counts

    def _run(
        self,
        frames: Tensor,
        states: tuple[EncoderLayerState, ...] | None,
        lengths: Tensor | None,
        chunk: int,
        lookahead: int,
        num_layers: int | None = None,
        *,
        every: bool = False,
        final: bool = True,
    ) -> tuple[list[Tensor], tuple[EncoderLayerState, ...] | None]:
        """Return what layers put out of frames (batch, time, d_model), and the states after it.

        If not `final`, a chunk whose look-ahead is not there yet is left for later.
        """
        layers = list(self.layers)[:num_layers]
        parts = []
        for start, kept, stop in windows(frames.shape[1], chunk, lookahead, final=final):
            x = frames[:, start:stop]
            counts = None if lengths is None else (lengths - start).clamp(0, stop - start)
            outputs, after = [], []
            for i, layer in enumerate(layers):
                x, state = layer(
                    x, None if states is None else states[i], lengths=counts, ahead=stop - kept
                )
                after.append(state)
                if every or i == len(layers) - 1:
                    outputs.append(x if kept == stop else x[:, : kept - start])
            states = tuple(after)
            parts.append(outputs)
        if not parts:
            return [frames[:, :0]] * (len(layers) if every else 1), states
        return [
            h[0] if len(h) == 1 else torch.cat(h, dim=1) for h in zip(*parts, strict=True)
        ], states

    def _check(self, features: Tensor) -> None:
        wanted = self.config.d_input
        if features.dim() != 3 or features.shape[2] != wanted or not features.is_floating_point():
            raise ValueError(
                f"features are {features.dtype} of shape {tuple(features.shape)}; they must be "
                f"floating point, (batch, time, d_input = {wanted})"
            )
        weights = next(self.parameters()).dtype
        if features.dtype != weights and not torch.is_autocast_enabled(features.device.type):
            raise ValueError(
                f"features are {features.dtype} and the encoder is {weights}; convert them, "
                f"features.to({weights}), or let torch.autocast do it"
            )


def windows(
    time: int, chunk: int, lookahead: int, *, final: bool = True
) -> list[tuple[int, int, int]]:
    """Cut time into chunks of frames; 0 is one chunk of all.

    Returns:
        (start, kept, stop) for each: frames from start to kept are put out, seeing those to stop.
        If not `final`, those only for which the whole look-ahead is there.
    """
    if not chunk:
        return [(0, time, time)] if time else []
    last = time if final else time - chunk - lookahead + 1
    return [
        (start, min(start + chunk, time), min(start + chunk + lookahead, time))
        for start in range(0, last, chunk)
    ]
