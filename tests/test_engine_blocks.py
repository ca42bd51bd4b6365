"""Blocks: how long those of many streams are, that work on them stops, and where it is done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from audiomamba.config import ModelConfig, Tier
from audiomamba.engine import launches, steps, streams, threads
from audiomamba.engine.choice import EngineName, open_engine
from audiomamba.engine.cuda_engine import to_kernel
from audiomamba.engine.launches import LaunchedStreams
from audiomamba.engine.place import Draw, Place
from audiomamba.engine.prompt import read_prompt
from audiomamba.engine.streams import StreamEngine
from audiomamba.engine.threads import ThreadedStreams
from audiomamba.models.waveform import WaveformModel
from tests.cuda_on_cpu import emulate

PLACE = Place(state=[], position=0, previous=0)


class Threaded:
    """An engine, and a stream of it, that is slow once it was asked for `fast` blocks."""

    def __init__(self, fast: int = 1 << 62) -> None:
        self.fast, self.made = fast, 0

    def start(self, *arguments: Any, **options: Any) -> Threaded:
        return self

    def run(self, tokens: np.ndarray, *options: Any) -> None:
        tokens[:] = 1
        self.made += 1
        if self.made > self.fast:
            time.sleep(0.01)


class Launched:
    """An engine whose streams are drawn as soon as they are launched."""

    def __init__(self) -> None:
        self.cuda_stream: Any = None

    def start(self, state: Any, *, streams: int, **options: Any) -> Launched:
        self.logits = torch.zeros(streams, 1)
        self.positions = [0] * streams
        return self

    def run(self, tokens: torch.Tensor, *options: Any) -> None:
        tokens.fill_(1)

    def state(self) -> list[torch.Tensor]:
        return []

    def previous(self) -> list[int]:
        return [1] * len(self.positions)


def test_streams_stop_between_two_of_them() -> None:
    engine = Threaded(fast=300)
    running = ThreadedStreams(engine, [PLACE] * 300, Draw())  # type: ignore[arg-type]
    blocks = running.blocks(10 * threads.LEAST)
    next(blocks)
    blocks.close()
    assert engine.made < 500  # not to the end of the second block


@pytest.mark.parametrize(
    ("count", "size"), [(1, threads.BLOCK), (4, threads.BLOCK // 4), (50, threads.LEAST)]
)
def test_a_core_that_has_many_streams_makes_shorter_blocks(count: int, size: int) -> None:
    running = ThreadedStreams(Threaded(), [PLACE] * count, Draw())  # type: ignore[arg-type]
    blocks = list(running.blocks(threads.BLOCK + 1))
    assert blocks[0].shape == (count, size)
    assert sum(block.shape[1] for block in blocks) == threads.BLOCK + 1


@pytest.mark.parametrize(
    ("count", "size"),
    [(1, launches.BLOCK), (128, launches.BLOCK), (512, launches.BLOCK // 4), (4096, 64)],
)
def test_launches_of_many_streams_are_shorter(count: int, size: int) -> None:
    running = LaunchedStreams(Launched(), [PLACE] * count, Draw())  # type: ignore[arg-type]
    blocks = list(running.blocks(launches.BLOCK + 1))
    assert blocks[0].shape == (count, size)
    assert sum(block.shape[1] for block in blocks) == launches.BLOCK + 1


class Cuda:
    """Streams of no GPU, of which one is current."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current: Any = "first"
        monkeypatch.setattr(torch.cuda, "stream", self.stream)
        for module in (streams, steps):
            monkeypatch.setattr(module, "current_stream", lambda device: self.current)

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream or self.current
        yield
        self.current = before


class Taken(TorchDispatchMode):
    """Bytes of new tensors on the meta device, which stands for a GPU, the ones of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        if function is torch.ops.aten.copy_.default and arguments[1].is_meta:
            return arguments[0].fill_(1) if not arguments[0].is_meta else arguments[0]
        made = function(*arguments, **(options or {}))
        old = function.is_view or function._schema.is_mutable
        if isinstance(made, torch.Tensor) and made.is_meta and not old:
            self.bytes.append(made.nbytes)
        return made


class OnMeta(StreamEngine):
    """An engine on the meta device, of which a kernel wants states in another order."""

    def __init__(self) -> None:
        tier = Tier(mixer="lti", n_layers=1, d_state=2)
        config = ModelConfig(d_model=4, tiers=(tier,), pools=())
        super().__init__(WaveformModel(config), torch.float32)
        self.device = torch.device("meta")

    def launch(self, *tensors: torch.Tensor) -> None: ...

    def state(self, streams: int) -> list[torch.Tensor]:
        return [torch.zeros(streams, *leaf.shape) for leaf in self.layout.leaves]

    def from_layout(self, flat: torch.Tensor) -> torch.Tensor:
        return to_kernel(torch.arange(flat.shape[1], device="meta"), flat)


def test_what_launches_need_is_taken_before_the_first() -> None:
    engine = OnMeta()
    place = Place(state=engine.state(1), position=0, previous=0)
    with Taken() as taken:
        running = LaunchedStreams(engine, [place] * 300, Draw())
        begun = len(taken.bytes)
        assert sum(block.shape[1] for block in running.blocks(1100)) == 1100
    assert taken.bytes[begun:] == []


@pytest.mark.parametrize(("leading", "most"), [(1, 1.1), (300, 2.1)])
def test_states_are_laid_out_without_more_memory_than_they_need(leading: int, most: float) -> None:
    engine = OnMeta()
    with Taken() as taken:
        begun = engine.start(engine.state(leading), streams=300)
    assert begun._state.is_meta
    others = begun.logits.nbytes + 300 * 100
    assert sum(taken.bytes) < most * begun._state.nbytes + others


class Watched(TorchDispatchMode):
    """Sees to it that all is done on the first stream."""

    def __init__(self, cuda: Cuda) -> None:
        super().__init__()
        self.cuda, self.seen = cuda, 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        assert self.cuda.current == "first", function
        self.seen += 1
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("engine", ["cuda", "torch"])
def test_a_stream_of_sound_stays_on_the_cuda_stream_on_which_its_engine_was_made(
    engine: EngineName, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "cuda":
        emulate(monkeypatch)
    monkeypatch.setattr(launches, "_landed", lambda tokens, *others: tokens)  # the host's part
    cuda = Cuda(monkeypatch)
    tier = Tier(mixer="lti", n_layers=1, d_state=2)
    network = WaveformModel(ModelConfig(d_model=4, tiers=(tier,), pools=())).eval()
    opened = open_engine(network, engine)
    begin = read_prompt(network, opened, [])
    running = opened.start([begin], Draw())
    cuda.current = "another"
    with Watched(cuda) as watched:
        running.read(np.array([1]))
        for _ in running.blocks(40):
            assert cuda.current == "another"
        running.nats()
        running.places()
    assert watched.seen
