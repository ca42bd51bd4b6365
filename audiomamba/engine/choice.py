"""Which engine makes a model's samples, and how it is opened."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Literal, get_args

import numpy as np
import torch

from audiomamba.config import ModelConfig
from audiomamba.engine.cuda_compile import why_not_cuda
from audiomamba.engine.cuda_limits import why_too_large
from audiomamba.engine.engine import Engine, log_compiling, supports
from audiomamba.engine.launches import LaunchedStreams
from audiomamba.engine.place import Draw, Opened
from audiomamba.engine.prompt import read_prompt
from audiomamba.engine.steps import ROWS, SteppedStreams
from audiomamba.engine.streams import LEVELS, StreamEngine
from audiomamba.engine.threads import ThreadedStreams
from audiomamba.models.waveform import WaveformModel
from audiomamba_kernels.backend import why_not

_log = logging.getLogger(__name__)

EngineName = Literal["numba", "cuda", "triton", "torch"]
Weights = Literal["float32", "bfloat16"]  # of an engine's matrices; all else is float32

TOGETHER = 1024  # streams of a launch of a kernel, which need 0.3 MB each of a GPU
STEPPED_TOGETHER = ROWS  # of streams in PyTorch, which gains nothing from more
SLOW_SECONDS = 1.0  # for what has been compiled before

# Engines that failed to open, which are not chosen again; they can be asked for.
_failed: list[tuple[EngineName, torch.device, ModelConfig, Weights]] = []


def choose_engine(network: WaveformModel, weights: Weights = "float32") -> EngineName:
    """Return the fastest engine that can run this model where it is, by weights that it has."""
    names: tuple[EngineName, ...] = get_args(EngineName)
    on_gpu = network.embedding.weight.device.type != "cpu"
    return next(
        name
        for name in names[on_gpu:]
        if why_not_engine(name, network) is None and _key(name, network, weights) not in _failed
    )


def _key(
    name: EngineName, network: WaveformModel, weights: Weights
) -> tuple[EngineName, torch.device, ModelConfig, Weights]:
    return name, network.embedding.weight.device, network.config, weights


def why_not_engine(engine: EngineName, network: WaveformModel) -> str | None:
    """Return why an engine cannot run a model where it is, or None if it can."""
    weight = network.embedding.weight
    if engine == "torch":
        return None
    if not supports(network.config):
        return "it has no attention"
    if engine == "numba":
        return None if weight.device.type == "cpu" else f"the model is on {weight.device}"
    if network.config.tokenizer.levels > LEVELS:
        return f"the model has {network.config.tokenizer.levels} levels, more than {LEVELS}"
    if engine == "triton":
        return why_not("triton", weight)
    return why_not_cuda(weight.device) or why_too_large(network.config, weight.device)


def check_engine(
    network: WaveformModel, name: EngineName | None, weights: Weights = "float32"
) -> EngineName:
    """Return the engine asked for, or chosen; raise ValueError if it cannot run the model so.

    A choice of PyTorch, the slow one, is logged as a warning, once for each reason; so is that of
    Triton on an NVIDIA GPU, where CUDA is twice as fast.
    """
    if name is None:
        name = choose_engine(network, weights)
        if name == "torch":
            on_cpu = network.embedding.weight.device.type == "cpu"
            fast: EngineName = "numba" if on_cpu else "triton"
            if reason := why_not_engine(fast, network):
                _warn_of_torch(fast, reason)
        on_nvidia = torch.version.cuda is not None
        if name == "triton" and on_nvidia and (reason := why_not_engine("cuda", network)):
            _warn_of_triton(reason)
    if name not in get_args(EngineName):
        raise ValueError(f"engine is {name!r}; choose one of {', '.join(get_args(EngineName))}")
    reason = why_not_engine(name, network)
    if reason is not None:
        raise ValueError(f"the {name} engine cannot run: {reason}; use {choose_engine(network)!r}")
    check_weights(name, weights)
    return name


def check_weights(name: EngineName, weights: Weights) -> None:
    """Raise ValueError if an engine has no weights of this type."""
    if weights not in get_args(Weights):
        raise ValueError(f"weights is {weights!r}; choose one of {', '.join(get_args(Weights))}")
    if weights != "float32" and name not in ("cuda", "triton"):
        raise ValueError(
            f"weights is {weights!r}, but the {name} engine, which runs here, has float32 alone; "
            "ask for float32, or run on a GPU (device cuda), which attention cannot"
        )


@cache
def _warn_of_torch(fast: EngineName, reason: str) -> None:
    _log.warning("the %s engine cannot run: %s; PyTorch generates, slowly", fast, reason)


@cache
def _warn_of_triton(reason: str) -> None:
    _log.warning("the cuda engine cannot run: %s; Triton generates, at half the speed", reason)


def open_engine(
    network: WaveformModel,
    name: EngineName | None = None,
    notify: Callable[[], None] | None = None,
    *,
    weights: Weights = "float32",
) -> Opened:
    """Lay out a model for an engine, and compile that if it has not been.

    Args:
        network: In evaluation mode.
        name: "numba" (one stream a CPU core), "cuda" (an NVIDIA GPU), "triton" (a GPU), "torch"
            (any device and mixer, the slow oracle), or None for `choose_engine`. If what is chosen
            for a GPU turns out not to work there, the reason is logged and the next is taken.
        notify: Called once before code is compiled, which takes up to 20 seconds; None logs.
        weights: Of the matrices; bfloat16 is half of what a GPU reads for a sample.

    Raises:
        ValueError: If the engine cannot run the model, or not with such weights.
        OSError, RuntimeError: If the engine asked for cannot be compiled or loaded.
        torch.OutOfMemoryError: If the device has no memory left for it.
    """
    tell = cache(notify or log_compiling)  # once
    if name is not None:
        return _open(network, check_engine(network, name, weights), tell, weights)
    while True:
        chosen = check_engine(network, None, weights)
        try:
            return _open(network, chosen, tell, weights)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler, a driver and Triton can fail in any way
            if chosen not in ("cuda", "triton"):
                raise
            _failed.append(_key(chosen, network, weights))
            reason, other = " ".join(str(error).split()), choose_engine(network, weights)
            _log.warning("the %s engine cannot run: %s; %s generates", chosen, reason, other)


def _open(
    network: WaveformModel, name: EngineName, notify: Callable[[], None], weights: Weights
) -> Opened:
    on_gpu = network.embedding.weight.device.type != "cpu"
    if name == "numba":
        engine = Engine(network)
        engine.warm_up(notify)
        return Opened(partial(ThreadedStreams, engine), torch.get_num_threads())
    if name == "torch":
        return Opened(partial(SteppedStreams, network), STEPPED_TOGETHER)
    kernel = _stream_engine(network, name, notify, weights)
    opened = Opened(partial(LaunchedStreams, kernel), TOGETHER)
    if on_gpu and name == "cuda":  # without Triton, which a whole period needs, and it a C compiler
        opened.start([read_prompt(network, opened, [])], Draw()).read(np.zeros(1, np.int64))
    elif on_gpu:  # else it is interpreted
        with _tell_if_slow(notify):  # Triton does not say when it compiles
            read_prompt(network, opened, [np.zeros(network.config.period + 1, np.int64)])
    return opened


def _stream_engine(
    network: WaveformModel, name: EngineName, notify: Callable[[], None], weights: Weights
) -> StreamEngine:
    dtype: torch.dtype = getattr(torch, weights)
    if name == "cuda":
        from audiomamba.engine.cuda_engine import CudaEngine

        return CudaEngine(network, dtype=dtype, notify=notify)
    from audiomamba.engine.triton_engine import TritonEngine

    return TritonEngine(network, dtype=dtype)


@contextmanager
def _tell_if_slow(notify: Callable[[], None]) -> Iterator[None]:
    """Call notify if the block takes longer than what needs no compiling."""
    timer = threading.Timer(SLOW_SECONDS, notify)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
