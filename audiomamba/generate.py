"""Make samples of streams, batch by batch."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from audiomamba.engine.choice import EngineName, Weights, check_engine, open_engine
from audiomamba.engine.place import Draw, Opened, Place, Running, Tokens
from audiomamba.engine.prompt import check_tokens, read_prompt
from audiomamba.engine.rewind import RewindingStreams, Rewinds
from audiomamba.guard import Guard, guarded
from audiomamba.models.waveform import WaveformModel
from audiomamba.sampling import Sampling, check_seed, check_whole

_log = logging.getLogger(__name__)

HELD = 1 << 32  # samples that the host holds, a byte or two each, until a batch is finished

Batch = int | Literal["auto"] | None
Streams = Generator["Made", None, None]
Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A stream that is finished.

    Attributes:
        index: Its number.
        tokens: What is new, (samples,) of the tokenizer's dtype.
        nats: Minus their log-likelihood, by the model as it is: temperature 1, no cuts.
        place: Where it stands, to go on from.
        rewinds: What its guard did; None without one.
    """

    index: int
    tokens: Tokens
    nats: float
    place: Place
    rewinds: Rewinds | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to generate; the same for every stream but for its number and its prompt.

    Attributes:
        samples: New samples of each stream.
        seed: Stream i draws the numbers of (seed, i).
        sampling: How tokens are drawn.
        prompt: Integers (samples,), tokens to continue, or empty; or a place, as `read_prompt`
            gives it; or a list of these, one a stream.
        guard: When a stream is taken back; None is never.

    Raises:
        ValueError: If a value is out of range.
    """

    samples: int
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    prompt: Tokens | Place | list[Tokens | Place] = field(
        default_factory=lambda: np.empty(0, np.int64)
    )
    guard: Guard | None = None

    def __post_init__(self) -> None:
        if check_whole(self.samples, "samples") < 1:
            raise ValueError(f"samples is {self.samples}; it must be at least 1")
        check_seed(self.seed)


def generate_streams(
    network: WaveformModel,
    job: Job,
    *,
    num: int = 1,
    first: int = 0,
    engine: EngineName | None = None,
    weights: Weights = "float32",
    batch: Batch = None,
    progress: Progress | None = None,
) -> Streams:
    """Generate streams first, ..., first + num - 1; each depends on the job and its number alone.

    Args:
        network: In evaluation mode.
        job: What to generate.
        num: Count of streams.
        first: Number of the first.
        engine: As `open_engine`.
        weights: As `open_engine`.
        batch: Streams made together; None is what suits the engine, fewer if they are very long,
            "auto" that or as many as fit into memory.
        progress: Called in this thread with the count of samples newly made.

    Returns:
        A generator of streams as they are finished. Closing it stops the work.

    Raises:
        ValueError: If num or first is out of range, the engine cannot run the model so, or a logit
            is not finite.
        MemoryError: If a batch does not fit, and the message names the largest that does; or not
            one period of a prompt.
    """
    if check_whole(num, "num") < 1 or check_whole(first, "first") < 0:
        raise ValueError(f"num is {num} and first {first}; they must be at least 1 and 0")
    if batch not in (None, "auto") and check_whole(batch, "batch") < 1:
        raise ValueError(f"batch is {batch}; it must be at least 1, 'auto' or None")
    prompts = job.prompt if isinstance(job.prompt, list) else [job.prompt] * num
    if len(prompts) != num:
        raise ValueError(f"there are {len(prompts)} prompts for {num} streams; give one for each")
    check_prompts(network, prompts)
    check_engine(network, engine, weights)

    def make(progress: Progress) -> Streams:
        opened = open_engine(network, engine, weights=weights)
        places = start_all(network, opened, prompts)
        opened = guarded(opened, job.guard, network.config.sample_rate)
        suits = max(1, min(opened.together, HELD // job.samples))
        at, size = 0, suits if batch is None or batch == "auto" else batch
        while at < num:
            draw = Draw(sampling=job.sampling, seed=job.seed, first=first + at)
            running, size = start_fitting(opened, places[at : at + size], draw, batch == "auto")
            count = len(places[at : at + size])
            tokens = np.empty((count, job.samples), network.config.tokenizer.dtype)
            done = 0
            with closing(running.blocks(job.samples)) as blocks:
                for block in blocks:
                    tokens[:, done : done + block.shape[1]] = block
                    done += block.shape[1]
                    progress(block.size)
            spent, places_after = running.nats().tolist(), deque(running.places())
            rewinds = running.rewinds() if isinstance(running, RewindingStreams) else [None] * count
            del running, blocks  # they would hold memory beside the next batch
            for i in range(count):
                yield Made(
                    index=draw.first + i,
                    tokens=tokens[i].copy(),
                    nats=spent[i],
                    place=places_after.popleft(),
                    rewinds=rewinds[i],
                )
            at += count

    return make(progress or (lambda made: None))


def start_fitting(
    opened: Opened,
    places: Sequence[Place],
    draw: Draw,
    reduce: bool,
    advice: str = "ask for a batch size of {}, or auto",
) -> tuple[Running, int]:
    """Begin streams, as many as fit into memory; return them and their count.

    Args:
        opened: The engine.
        places: Where they begin.
        draw: How they are drawn.
        reduce: Whether fewer will do: the first of them.
        advice: Where they will not, what to do, of the count of those that fit.

    Raises:
        MemoryError: If fewer fit and will not do, or not one fits.
    """
    running = _start(opened, places, draw)
    if running is not None:
        return running, len(places)
    fits, too_many = 0, len(places)
    while too_many - fits > 1:
        size = (fits + too_many) // 2
        if _start(opened, places[:size], draw) is None:
            too_many = size
        else:
            fits = size
    if not fits:
        raise MemoryError(
            "not one stream fits into the device's memory; free some of it, or use another device"
        )
    if not reduce:
        raise MemoryError(
            f"{len(places)} streams together do not fit into the device's memory, {fits} do; "
            + advice.format(fits)
        )
    _log.warning("%d streams together do not fit into memory; going on by %d", len(places), fits)
    return opened.start(places[:fits], draw), fits


def _start(opened: Opened, places: Sequence[Place], draw: Draw) -> Running | None:
    """Begin streams, or return None if they do not fit into memory."""
    with suppress(torch.OutOfMemoryError):
        return opened.start(places, draw)
    torch.cuda.empty_cache()  # not before the error is gone, which holds what was there
    return None


def check_prompts(network: WaveformModel, prompts: list[Tokens | Place]) -> list[Tokens | Place]:
    """Return prompts; raise ValueError if tokens are no levels."""
    for one in {id(one): one for one in prompts}.values():
        if not isinstance(one, Place):
            check_tokens(network, one)
    return prompts


def start_all(
    network: WaveformModel, opened: Opened, prompts: Sequence[Tokens | Place]
) -> list[Place]:
    """Return where streams stand after their prompts; one that several share is read once."""
    read: dict[int, Place] = {}
    for one in prompts:
        if id(one) not in read:
            read[id(one)] = one if isinstance(one, Place) else read_prompt(network, opened, [one])
    return [read[id(one)] for one in prompts]
