"""Make samples: a prompt is read by whole periods, then one sample after another is drawn."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audiomamba.engine.engine import Engine, supports
from audiomamba.models.waveform import WaveformModel
from audiomamba.sampling import Sampling, check_seed, check_whole, sample, uniforms
from audiomamba.state import leaves, map_state
from audiomamba_kernels.backend import why_not

if TYPE_CHECKING:
    from audiomamba.engine.triton_engine import Streams as TritonStreams

EngineName = Literal["numba", "triton", "torch"]
Tokens = NDArray[np.integer[Any]]
Streams = Generator[tuple[int, Tokens], None, None]
Progress = Callable[[int], None]

BLOCK = 2048  # samples that the compiled loop makes before it looks up, some 50 ms
TORCH_BLOCK = 32
CHUNK = 1 << 16  # samples of a prompt read at once

TRITON_BLOCK = 1024
TOGETHER = 1024  # streams of a launch of the Triton kernel, which need 0.3 MB each of a GPU

# Streams that PyTorch steps together on a GPU. Always as many, so that the order of sums inside a
# matrix product, and with it a stream's samples, does not depend on how many are asked for.
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
    """Return the fastest engine that can run this model where it is."""
    names: tuple[EngineName, ...] = ("numba", "triton", "torch")
    on_gpu = network.embedding.weight.device.type != "cpu"
    return next(name for name in names[on_gpu:] if why_not_engine(name, network) is None)


def why_not_engine(engine: EngineName, network: WaveformModel) -> str | None:
    """Return why an engine cannot run a model where it is, or None if it can."""
    weight = network.embedding.weight
    if engine == "torch":
        return None
    if not supports(network.config):
        return "it has no attention"
    if engine == "numba":
        return None if weight.device.type == "cpu" else f"the model is on {weight.device}"
    reason = why_not("triton", weight)
    if reason is None:
        from audiomamba.engine.triton_engine import LEVELS

        if network.config.tokenizer.levels > LEVELS:
            reason = f"the model has {network.config.tokenizer.levels} levels, more than {LEVELS}"
    return reason


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
        engine: "numba" (one stream a CPU core), "triton" (a GPU), "torch" (any device and mixer,
            the slow oracle), or None for `choose_engine`.
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
    reason = why_not_engine(engine, network)
    if reason is not None:
        raise ValueError(
            f"the {engine} engine cannot run: {reason}; use {choose_engine(network)!r}"
        )
    indices = range(first, first + num)
    run = {"numba": _compiled, "triton": _launched, "torch": _stepped}[engine]
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


def _launched(network: WaveformModel, job: Job, indices: range, progress: Progress) -> Streams:
    """Run streams side by side on a GPU, a block of samples a launch."""
    from audiomamba.engine.triton_engine import TritonEngine

    engine = TritonEngine(network)
    state, read = prefill(network, job.prompt)
    previous = int(job.prompt[read - 1]) if read else None
    start, dtype = leaves(state), network.config.tokenizer.dtype
    for at in range(0, len(indices), TOGETHER):
        group = indices[at : at + TOGETHER]
        streams = engine.start(start, streams=len(group), position=read, previous=previous)
        tokens = np.empty((len(group), job.samples), dtype)
        done = 0
        for block in _blocks(streams, job, read, group):
            tokens[:, done : done + block.shape[1]] = block
            done += block.shape[1]
            progress(block.size)
        for index in group:
            yield index, tokens[index - group.start].copy()


@torch.inference_mode()
def _blocks(
    streams: TritonStreams, job: Job, read: int, group: range
) -> Generator[Tokens, None, None]:
    """Yield blocks (streams, samples) while the next one is made."""
    device = streams.logits.device

    def launch(tokens: Tensor) -> Tensor:
        streams.run(tokens, job.sampling, job.seed, group.start)
        return tokens

    given = torch.from_numpy(job.prompt[read:].astype(np.int32)).to(device)
    launch(given.repeat(len(group), 1))
    waiting: list[tuple[Tensor, torch.cuda.Event | None]] = []
    for at in range(0, job.samples, TRITON_BLOCK):
        count = min(TRITON_BLOCK, job.samples - at)
        shape = (len(group), count)
        tokens = launch(torch.full(shape, -1, dtype=torch.int32, device=device))
        if device.type == "cuda":
            host = torch.empty(shape, dtype=torch.int32, pin_memory=True)
            host.copy_(tokens, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(torch.cuda.current_stream(device))
            waiting.append((host, copied))
        else:
            waiting.append((tokens, None))
        if len(waiting) > 1:
            yield _landed(*waiting.pop(0), at - TRITON_BLOCK + len(job.prompt))
    yield _landed(*waiting.pop(0), streams.position - count)


def _landed(tokens: Tensor, copied: torch.cuda.Event | None, position: int) -> Tokens:
    """Wait for a block that begins at a position, and look at it."""
    if copied is not None:
        copied.synchronize()
    block = tokens.numpy()
    lost = (block < 0).any(axis=0)
    if lost.any():
        raise ValueError(
            f"a logit is not finite at sample {position + int(lost.argmax())}; the weights are "
            "damaged or training diverged"
        )
    return block


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
