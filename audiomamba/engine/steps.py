"""Streams that PyTorch steps: on any device, with any mixer, slowly."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from audiomamba.engine.place import Blocks, Draw, Place, Tokens, joined, parted
from audiomamba.models.waveform import WaveformModel
from audiomamba.sampling import sample, uniforms
from audiomamba.state import from_leaves, leaves
from audiomamba_kernels.backend import current_stream

BLOCK = 32

# Streams that step together on a GPU. Always as many, so that the order of sums inside a matrix
# product, and with it a stream's samples, does not depend on how many are asked for.
ROWS = 8


class SteppedStreams:
    """See `Running`; streams that are equally far step together, on a GPU ROWS of them.

    They stay on the CUDA stream on which they began.
    """

    def __init__(self, network: WaveformModel, places: Sequence[Place], draw: Draw) -> None:
        device = network.embedding.weight.device
        self._own = partial(torch.cuda.stream, current_stream(device))
        rows = 1 if device.type == "cpu" else ROWS
        far: dict[int, list[int]] = {}
        for i, place in enumerate(places):
            far.setdefault(place.position, []).append(i)
        self._count = len(places)
        self._packs = [
            _Pack(network, members[at : at + rows], places, draw, rows)
            for members in far.values()
            for at in range(0, len(members), rows)
        ]

    @torch.inference_mode()
    def read(self, tokens: Tokens) -> None:
        """Take all streams through given tokens."""
        with self._own():
            for pack in self._packs:
                pack.run(len(tokens), torch.from_numpy(tokens.astype(np.int64)))

    @torch.inference_mode()
    def blocks(self, samples: int) -> Blocks:
        """Draw samples."""
        for at in range(0, samples, BLOCK):
            block = np.empty((self._count, min(BLOCK, samples - at)), np.int64)
            with self._own():
                for pack in self._packs:
                    block[pack.members] = pack.run(block.shape[1])
            yield block

    def nats(self) -> NDArray[np.float64]:
        """Return minus the log-likelihoods."""
        nats = np.empty(self._count)
        with self._own():
            for pack in self._packs:
                nats[pack.members] = pack.nats.cpu().numpy()[: len(pack.members)]
        return nats

    def places(self) -> list[Place]:
        """Return where each stream stands."""
        found: dict[int, Place] = {}
        with self._own():
            for pack in self._packs:
                positions = [pack.position] * len(pack.previous)
                stand = parted(leaves(pack.state), positions, pack.previous.tolist())
                found.update(zip(pack.members, stand, strict=False))  # rows beyond the members
        return [found[i] for i in range(self._count)]


class _Pack:
    """Streams that step together, filled up to `rows` by repeating the last."""

    def __init__(
        self,
        network: WaveformModel,
        members: list[int],
        places: Sequence[Place],
        draw: Draw,
        rows: int,
    ) -> None:
        device = network.embedding.weight.device
        filled = [*members, *members[-1:] * (rows - len(members))]
        start = joined([places[i] for i in filled])
        self.members = members
        self.position = places[members[0]].position
        self.previous = torch.tensor([places[i].previous for i in filled], device=device)
        self.nats = torch.zeros(rows, dtype=torch.float64, device=device)
        self.state = from_leaves(network.initial_state(1), [x.to(device) for x in start])
        self._network = network
        self._sampling = draw.sampling
        self._keys = [draw.key(i) for i in filled]

    def run(self, samples: int, given: Tensor | None = None) -> Tokens:
        """Take steps, through tokens (samples,) if they are given; return the members' tokens."""
        device, period = self.previous.device, self._network.config.period
        numbers = [uniforms(*key, self.position, samples) for key in self._keys]
        uniform = torch.from_numpy(np.stack(numbers)).to(device)
        made: list[Tensor] = []
        for at in range(samples):
            phase = (self.position + at) % period
            logits, self.state = self._network.step(self.previous, self.state, phase)
            if given is None:
                self.previous = sample(logits, uniform[:, at], self._sampling)
            else:
                self.previous = given[at].to(device).expand(len(self.previous))
            self.nats += F.cross_entropy(logits.double(), self.previous, reduction="none")
            made.append(self.previous)
        self.position += samples
        tokens: Tokens = torch.stack(made, dim=1).cpu().numpy()[: len(self.members)]
        return tokens
