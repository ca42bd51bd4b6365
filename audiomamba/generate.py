"""Make samples: a prompt is read by whole periods, then one sample after another is drawn."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audiomamba.engine.engine import Engine, supports
from audiomamba.models.waveform import WaveformModel
from audiomamba.sampling import Sampling, check_seed, check_whole, sample, uniforms
from audiomamba.state import leaves, map_state

EngineName = Literal["numba", "torch"]
Tokens = NDArray[np.integer[Any]]
Streams = Generator[tuple[int, Tokens], None, None]
Progress = Callable[[int], None]

BLOCK = 2048  # samples that the compiled loop makes before it looks up, some 50 ms
TORCH_BLOCK = 32
CHUNK = 1 << 16  # samples of a prompt read at once

# Streams that step together on a GPU. Always as many, so that the order of sums inside a matrix
# product, and with it a stream's samples, does not depend on how many streams are asked for.
ROWS = 8


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to generate; the same for every stream but for its number.

    Attributes:
        samples: New samples of each stream.
        seed: Stream i draws the numbers of (seed, i).
        sampling: How tokens are drawn.
        prompt: Integers (samples,), tokens to continue, or empty.

    Raises:
        ValueError: If a value is out of range.
    """

    samples: int
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    prompt: Tokens = field(default_factory=lambda: np.empty(0, np.int64))

    def __post_init__(self) -> None:
        if check_whole(self.samples, "samples") < 1:
            raise ValueError(f"samples is {self.samples}; it must be at least 1")
        if self.prompt.dtype.kind not in "iu":
            raise ValueError(f"the prompt's tokens are {self.prompt.dtype}; they must be integers")
        check_seed(self.seed)


def choose_engine(network: WaveformModel) -> EngineName:
    """Return what runs this model: "numba" on a CPU, "torch" on a GPU or with attention."""
    on_cpu = network.embedding.weight.device.type == "cpu"
    return "numba" if on_cpu and supports(network.config) else "torch"


def generate_streams(
    network: WaveformModel,
    job: Job,
    *,
    num: int = 1,
    first: int = 0,
    engine: EngineName | None = None,
    progress: Progress | None = None,
) -> Streams:
    """Generate streams first, ..., first + num - 1; each depends on the job and its number alone.

    Args:
        network: In evaluation mode.
        job: What to generate.
        num: Count of streams.
        first: Number of the first.
        engine: "numba" (one stream a CPU core), "torch" (any device; on a CPU the slow oracle), or
            None for `choose_engine`.
        progress: Called in this thread with the count of samples newly made.

    Returns:
        A generator of a stream's number and its new tokens, (samples,) of the tokenizer's dtype, as
        each is finished. Closing it stops the work.

    Raises:
        ValueError: If num or first is out of range, the engine cannot run the model, or a logit is
            not finite.
    """
    if check_whole(num, "num") < 1 or check_whole(first, "first") < 0:
        raise ValueError(f"num is {num} and first {first}; they must be at least 1 and 0")
    levels, prompt = network.config.tokenizer.levels, job.prompt
    if len(prompt) and not 0 <= prompt.min() <= prompt.max() < levels:
        raise ValueError(f"the prompt holds other tokens than the levels 0 to {levels - 1}")
    engine = engine or choose_engine(network)
    if engine not in get_args(EngineName):
        raise ValueError(f"engine is {engine!r}; choose one of {', '.join(get_args(EngineName))}")
    if engine == "numba" and choose_engine(network) != "numba":
        raise ValueError(
            "the numba engine needs a model on the CPU, without attention; use 'torch'"
        )
    indices = range(first, first + num)
    run = _compiled if engine == "numba" else _stepped
    return run(network, job, indices, progress or (lambda made: None))


@torch.inference_mode()
def prefill(network: WaveformModel, prompt: Tokens) -> tuple[Any, int]:
    """Read the whole periods of a prompt; return the state for one stream, and the samples read."""
    silence, period = network.config.tokenizer.silence, network.config.period
    whole = len(prompt) - len(prompt) % period
    previous = torch.from_numpy(np.concatenate([[silence], prompt[:-1]], dtype=np.int64))
    previous = previous[None, :whole].to(network.embedding.weight.device)
    state = network.initial_state(1)
    chunk = max(1, CHUNK // period) * period
    for at in range(0, whole, chunk):
        _, state = network(previous[:, at : at + chunk], state)
    return state, whole


def _compiled(network: WaveformModel, job: Job, indices: range, progress: Progress) -> Streams:
    """Run one stream a thread; the compiled loop holds no lock."""
    engine = Engine(network)
    engine.warm_up()
    state, read = prefill(network, job.prompt)
    start = leaves(state)
    previous = int(job.prompt[read - 1]) if read else None
    stop = threading.Event()
    # (index, samples made, None), and at the end (index, 0, tokens) or (index, 0, what went wrong)
    news: queue.SimpleQueue[tuple[int, int, Tokens | BaseException | None]] = queue.SimpleQueue()

    def make(index: int) -> None:
        try:
            stream = engine.start(start, position=read, previous=previous)
            stream.run(job.prompt[read:].astype(np.int64))
            tokens = np.empty(job.samples, network.config.tokenizer.dtype)
            for at in range(0, job.samples, BLOCK):
                if stop.is_set():
                    return
                block = np.full(min(BLOCK, job.samples - at), -1, np.int64)
                stream.run(block, job.sampling, job.seed, index)
                tokens[at : at + BLOCK] = block
                news.put((index, len(block), None))
            news.put((index, 0, tokens))
        except BaseException as error:
            news.put((index, 0, error))

    threads = min(len(indices), torch.get_num_threads())
    with ThreadPoolExecutor(threads, thread_name_prefix="generate") as pool:
        try:
            for index in indices:
                pool.submit(make, index)
            left = len(indices)
            while left:
                index, made, result = news.get()
                if isinstance(result, BaseException):
                    raise result
                if result is None:
                    progress(made)
                else:
                    left -= 1
                    yield index, result
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


@torch.inference_mode()
def _stepped(network: WaveformModel, job: Job, indices: range, progress: Progress) -> Streams:
    """Run streams by the model's own step: on a GPU, ROWS of them at a time."""
    rows = 1 if network.embedding.weight.device.type == "cpu" else ROWS
    state, read = prefill(network, job.prompt)
    state = map_state(lambda x: x.expand(rows, *x.shape[1:]), state)
    for group in range(indices.start // rows, (indices.stop - 1) // rows + 1):
        members = range(group * rows, (group + 1) * rows)
        wanted = [index for index in members if index in indices]
        count = partial(_times, progress, len(wanted))
        tokens = _step_group(network, job, members, state, read, count)
        for index in wanted:
            yield index, tokens[index - members.start].copy()


def _step_group(
    network: WaveformModel, job: Job, members: range, state: Any, read: int, progress: Progress
) -> Tokens:
    """Step streams together through the rest of the prompt and then job.samples times."""
    device = network.embedding.weight.device
    begin, end, period = len(job.prompt), len(job.prompt) + job.samples, network.config.period
    given = torch.from_numpy(job.prompt.astype(np.int64)).to(device).expand(len(members), -1)
    silence = given.new_full((len(members),), network.config.tokenizer.silence)
    previous = given[:, read - 1] if read else silence
    tokens = np.empty((len(members), job.samples), network.config.tokenizer.dtype)
    made: list[Tensor] = []
    for t in range(read, end):
        logits, state = network.step(previous, state, t % period)
        if t < begin:
            previous = given[:, t]
            continue
        at = (t - begin) % TORCH_BLOCK
        if at == 0:
            count = min(TORCH_BLOCK, end - t)
            numbers = np.stack([uniforms(job.seed, index, t, count) for index in members])
            uniform = torch.from_numpy(numbers).to(device)
        previous = sample(logits, uniform[:, at], job.sampling)
        made.append(previous)
        if at == count - 1:
            end_of_block = t - begin + 1
            block = torch.stack(made, dim=1).cpu().numpy()
            tokens[:, end_of_block - count : end_of_block] = block
            made.clear()
            progress(count)
    return tokens


def _times(progress: Progress, streams: int, made: int) -> None:
    progress(streams * made)
