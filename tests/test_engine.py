from __future__ import annotations

import errno
import inspect
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audiomamba.config import ModelConfig, Tier
from audiomamba.engine import philox, step
from audiomamba.engine.engine import Engine, supports
from audiomamba.models.waveform import WaveformModel
from audiomamba.sampling import Sampling
from audiomamba.state import leaves
from audiomamba.tokenizer import Tokenizer
from audiomamba_kernels import vector_math
from audiomamba_kernels.jit import announce, fingerprint, jit, jit_cached

S6 = Tier(mixer="s6", n_layers=1, d_state=6)
S6_COMPLEX = Tier(mixer="s6", complex=True, n_layers=2, d_state=4)
LTI = Tier(mixer="lti", n_layers=2, d_state=5, d_conv=1)
LTI_COMPLEX = Tier(mixer="lti", complex=True, n_layers=1, d_state=8, d_conv=3)
S4 = Tier(mixer="s4", n_layers=1, d_state=8, expand=3)

MODELS = {
    "s6": (10, (S6, S6), (4,)),
    "s6-complex": (10, (S6_COMPLEX, S6_COMPLEX), (4,)),
    "lti": (24, (LTI, LTI), (4,)),
    "lti-complex": (24, (LTI_COMPLEX, LTI_COMPLEX), (4,)),
    "s4": (7, (S4, S4), (4,)),
    "mixed": (5, (LTI_COMPLEX, S4, S6_COMPLEX), (2, 3)),
    "shipped-like": (16, (LTI_COMPLEX, LTI_COMPLEX, S6_COMPLEX), (2, 3)),
    "one-rate": (17, (S6_COMPLEX,), ()),
    "five-bits": (6, (S6, LTI), (3,)),
    "many-states": (6, (Tier(mixer="s6", n_layers=1, d_state=50), S6), (2,)),
}


def make(name: str) -> WaveformModel:
    """A model whose every parameter matters: none is left at 0 or 1."""
    d_model, tiers, pools = MODELS[name]
    bits = 5 if name == "five-bits" else 8
    torch.manual_seed(len(name))
    network = WaveformModel(
        ModelConfig(tokenizer=Tokenizer(bits=bits), d_model=d_model, tiers=tiers, pools=pools)
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return network.eval()


def tokens_of(network: WaveformModel, samples: int) -> np.ndarray:
    levels = network.config.tokenizer.levels
    return np.random.default_rng(samples).integers(0, levels, samples)


@torch.inference_mode()
def step_all(network: WaveformModel, tokens: np.ndarray) -> tuple[np.ndarray, Any]:
    """Logits of every token by the PyTorch step, and the state at the end."""
    state, rows = network.initial_state(1), []
    previous = network.config.tokenizer.silence
    for t, token in enumerate(tokens.tolist()):
        row, state = network.step(torch.tensor([previous]), state, t % network.config.period)
        rows.append(row[0].numpy())
        previous = token
    return np.stack(rows), state


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_state_equal_those_of_the_pytorch_step(name: str) -> None:
    network = make(name)
    tokens = tokens_of(network, 3 * network.config.period + 5)
    expected, state = step_all(network, tokens)
    stream = Engine(network).start()
    actual = []
    for token in tokens:
        stream.run(np.array([token]))
        actual.append(stream.logits.copy())
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(np.stack(actual), expected, rtol=0, atol=1e-5 * scale)
    for mine, theirs in zip(stream.state(), leaves(state), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_default_model_s_logits_equal_those_of_the_pytorch_step() -> None:
    torch.manual_seed(0)
    network = WaveformModel(ModelConfig()).eval()
    tokens = tokens_of(network, 2 * network.config.period + 1)
    expected, _ = step_all(network, tokens)
    stream = Engine(network).start()
    stream.run(tokens)
    np.testing.assert_allclose(stream.logits, expected[-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_a_state_from_the_forward_pass_goes_on_as_if_stepped(name: str) -> None:
    network = make(name)
    period = network.config.period
    tokens = tokens_of(network, 3 * period + 2)
    whole = Engine(network).start()
    whole.run(tokens.copy())
    read = 2 * period
    previous = np.concatenate([[network.config.tokenizer.silence], tokens])[None, :read]
    _, state = network(torch.from_numpy(previous))
    begun = Engine(network).start(leaves(state), position=read, previous=tokens[read - 1])
    begun.run(tokens[read:].copy())
    np.testing.assert_allclose(begun.logits, whole.logits, rtol=0, atol=1e-4)
    assert begun.position == whole.position == len(tokens)


def test_an_exported_state_comes_back_equal() -> None:
    network = make("mixed")
    engine = Engine(network)
    stream = engine.start()
    stream.run(tokens_of(network, 11))
    again = engine.start(stream.state(), position=11)
    for mine, theirs in zip(again.state(), stream.state(), strict=True):
        assert torch.equal(mine, theirs)
    assert [x.shape for x in stream.state()] == [x.shape for x in leaves(network.initial_state(1))]


def test_a_state_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="came where"):
        Engine(make("s6")).start(leaves(make("lti").initial_state(1))[:5])


def test_samples_do_not_depend_on_blocks() -> None:
    engine = Engine(make("shipped-like"))
    whole = np.full(200, -1)
    engine.start().run(whole, seed=5, index=2)
    stream, parts = engine.start(), np.full(200, -1)
    for at, end in ((0, 1), (1, 64), (64, 64), (64, 171), (171, 200)):
        stream.run(parts[at:end], seed=5, index=2)
    assert np.array_equal(whole, parts)
    assert whole.min() >= 0


def test_given_tokens_are_kept_and_the_rest_is_drawn() -> None:
    engine = Engine(make("s6"))
    free = np.full(50, -1)
    engine.start().run(free)
    forced = np.where(np.arange(50) % 3 == 0, free, -1)
    engine.start().run(forced)
    assert np.array_equal(forced, free)


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(0), Sampling(0.7, 20, 0.9)], ids=["all", "greedy", "cut"]
)
def test_options_seeds_and_streams_reach_the_draw(sampling: Sampling) -> None:
    engine = Engine(make("s6"))
    made = []
    for seed, index in ((0, 0), (0, 1), (1, 0)):
        tokens = np.full(60, -1)
        engine.start().run(tokens, sampling, seed, index)
        made.append(tokens.tolist())
    if sampling.temperature == 0:
        assert made[0] == made[1] == made[2]
    else:
        assert made[0] != made[1] != made[2] != made[0]


def test_streams_of_one_engine_do_not_touch() -> None:
    engine = Engine(make("mixed"))
    alone, first, second = (np.full(40, -1) for _ in range(3))
    engine.start().run(alone)
    a, b = engine.start(), engine.start()
    for at in range(0, 40, 5):
        a.run(first[at : at + 5])
        b.run(second[at : at + 5], seed=1)
    assert np.array_equal(alone, first)
    assert not np.array_equal(first, second)


def test_the_loop_lets_other_threads_run() -> None:
    stream = Engine(make("shipped-like")).start()
    stream.run(np.empty(0, np.int64))
    worker = threading.Thread(target=stream.run, args=(np.full(30_000, -1),))
    worker.start()
    ticks = 0
    while worker.is_alive():
        time.sleep(0.001)
        ticks += 1
    assert ticks > 5


def test_weights_that_make_nan_are_reported_with_the_sample() -> None:
    network = make("lti")
    with torch.no_grad():
        network.embedding.weight[200, 0] = float("nan")
    stream = Engine(network).start()
    stream.run(np.array([1, 200]))
    with pytest.raises(ValueError, match="not finite at sample 2"):
        stream.run(np.full(3, -1))


def test_a_token_beyond_the_levels_is_refused() -> None:
    with pytest.raises(ValueError, match="a token is 32"):
        Engine(make("five-bits")).start().run(np.array([31, 32]))


@pytest.mark.parametrize(
    "tokens", [np.zeros(3, np.int32), np.zeros(6, np.int64)[::2]], ids=["int32", "strided"]
)
def test_an_array_that_would_be_compiled_for_anew_is_refused(tokens: np.ndarray) -> None:
    with pytest.raises(ValueError, match="contiguous"):
        Engine(make("five-bits")).start().run(tokens)


def test_a_first_token_beyond_the_levels_is_refused() -> None:
    with pytest.raises(ValueError, match="previous is 32"):
        Engine(make("five-bits")).start(previous=32)


def test_a_second_process_finds_the_compiled_code() -> None:
    Engine(make("s6")).warm_up()
    code = """
import sys
from audiomamba.config import ModelConfig, Tier
from audiomamba.engine.engine import Engine
from audiomamba.models.waveform import WaveformModel
config = ModelConfig(d_model=2, tiers=(Tier(mixer="lti", n_layers=1, d_state=1),), pools=())
Engine(WaveformModel(config)).warm_up(lambda: sys.exit("compiled again"))
"""
    path = os.pathsep.join(sys.path)
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_the_fingerprint_changes_with_every_source(tmp_path: Path) -> None:
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("x = 1")
    before = fingerprint(tmp_path)
    assert before == fingerprint(tmp_path) >= 0
    (tmp_path / "b.py").write_text("x = 2")
    assert fingerprint(tmp_path) != before


@pytest.mark.parametrize("function", [step.run, philox.fill], ids=["run", "fill"])
def test_kept_code_belongs_to_the_fingerprint(function: Any) -> None:
    cells = inspect.unwrap(function).__closure__
    assert [cell.cell_contents for cell in cells or ()] == [fingerprint(Path(step.__file__).parent)]


def test_a_compilation_is_announced_as_it_begins(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(make("s6"))
    engine.warm_up()
    engine.warm_up(lambda: pytest.fail("nothing was compiled"))
    stand_in = jit(lambda *args: 0)
    monkeypatch.setattr(step, "run", stand_in)
    told: list[int] = []
    engine.warm_up(lambda: told.append(len(stand_in.signatures)))  # type: ignore[attr-defined]
    engine.warm_up(lambda: pytest.fail("nothing was compiled"))
    assert told == [0]
    monkeypatch.setattr(step, "run", jit(lambda *args: 0))
    engine.warm_up()
    assert "compiling" in caplog.text


def test_a_compilation_in_another_thread_is_not_announced() -> None:
    with announce(lambda: pytest.fail("this thread compiled nothing")):
        worker = threading.Thread(target=jit(lambda x: 2 * x), args=(1,))
        worker.start()
        worker.join()


@pytest.mark.parametrize("action", ["save", "load"])
def test_a_cache_that_fails_is_reported_and_done_without(
    action: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"numba.core.caching.IndexDataCacheFile.{action}", fail)
    double = jit_cached(lambda x: 2 * x)
    with caplog.at_level(logging.WARNING):
        assert double(3) == double(3) == 6
    (message,) = caplog.messages
    assert "No space left" in message
    assert "NUMBA_CACHE_DIR" in message
    assert "cannot be kept in /" in message or os.name == "nt"


def test_attention_is_refused() -> None:
    config = ModelConfig(
        d_model=8, tiers=(Tier(mixer="attention", n_heads=2, n_layers=1),), pools=()
    )
    assert not supports(config)
    assert supports(ModelConfig())
    with pytest.raises(ValueError, match="attention"):
        Engine(WaveformModel(config))


def apply(function: Any) -> Any:
    """A compiled loop of a function of one float32."""

    @jit
    def loop(x: Any, y: Any) -> None:
        for i in range(len(x)):
            y[i] = function(x[i])

    def run(x: np.ndarray) -> np.ndarray:
        y = np.empty_like(x)
        loop(x, y)
        return y

    return run


@pytest.mark.parametrize(
    ("name", "limit", "atol", "rtol"),
    [  # the tolerance is about twice the largest error on 10^6 points
        ("exp", 87, 0, 2.4e-7),
        ("exp2", 126, 0, 2.4e-7),
        ("silu", 80, 0, 5e-7),
        ("sigmoid", 80, 0, 4e-7),
        ("softplus", 60, 0, 5e-7),
        ("gelu", 20, 8e-7, 0),
    ],
)
def test_elementary_functions_equal_float64(
    name: str, limit: float, atol: float, rtol: float
) -> None:
    x = np.linspace(-limit, limit, 20_001, dtype=np.float32)
    wide = torch.from_numpy(x).double()
    expected = {
        "exp": torch.exp,
        "exp2": torch.exp2,
        "silu": torch.nn.functional.silu,
        "sigmoid": torch.sigmoid,
        "softplus": lambda v: torch.log1p(torch.exp(-v.abs())) + v.clamp(min=0),
        "gelu": torch.nn.functional.gelu,
    }[name](wide)
    actual = apply(getattr(vector_math, name))(x)
    np.testing.assert_allclose(actual, expected.numpy(), rtol=rtol, atol=atol)


def test_sine_and_cosine_equal_float64() -> None:
    both = [jit(lambda x: vector_math.sincos(x)[0]), jit(lambda x: vector_math.sincos(x)[1])]
    for limit in (4, 8000):
        x = np.linspace(-limit, limit, 20_001, dtype=np.float32)
        for function, expected in zip(both, (np.sin, np.cos), strict=True):
            actual = apply(function)(x)
            np.testing.assert_allclose(actual, expected(x.astype(float)), rtol=0, atol=2e-7)
