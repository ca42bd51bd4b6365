from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiomamba.engine.draw import FAILED, draw
from audiomamba.engine.philox import philox4x32
from audiomamba.sampling import Sampling, sample, uniforms

ALL = 0xFFFFFFFF
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)


def drawn(logits: np.ndarray, u: float, sampling: Sampling) -> int:
    scratch = [np.empty(len(logits), np.float32) for _ in range(3)]
    token = draw(
        logits,
        np.float32(u),
        np.float32(sampling.temperature),
        len(logits) if sampling.top_k is None else sampling.top_k,
        1.0 if sampling.top_p is None else sampling.top_p,
        *scratch,
    )
    return int(token)


def sampled(logits: np.ndarray, u: float, sampling: Sampling) -> int:
    row = torch.from_numpy(logits)[None]
    return int(sample(row, torch.tensor([u], dtype=torch.float32), sampling))


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # kat_vectors of Random123
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ALL,) * 4, (ALL,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (*PI, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)
def test_philox_equals_its_known_answers(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert philox4x32(*map(np.uint64, counter), *map(np.uint64, key)) == expected


def test_uniforms_are_the_documented_bits_of_philox() -> None:
    seed, stream, t = 0x0123456789ABCDEF, 0xFEDCBA9876543210, 0x1_0000_0002
    halves = [t & ALL, t >> 32, stream & ALL, stream >> 32, seed & ALL, seed >> 32]
    word = int(philox4x32(*map(np.uint64, halves))[0])
    assert uniforms(seed, stream, t, 1)[0] == (word >> 8 | 1) / 2**24


def test_uniforms_do_not_depend_on_blocks() -> None:
    whole = uniforms(7, 3, 0, 1000)
    parts = [uniforms(7, 3, at, n) for at, n in ((0, 1), (1, 63), (64, 500), (564, 436))]
    assert np.array_equal(whole, np.concatenate(parts))


def test_uniforms_are_uniform_and_streams_and_seeds_differ() -> None:
    x = uniforms(0, 0, 0, 100_000)
    assert x.dtype == np.float32
    assert 0 < x.min() < 1e-4
    assert 1 - 1e-4 < x.max() < 1
    counts = np.histogram(x, 100, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 160  # chi squared, 99 degrees: p about 1e-4
    for other in (uniforms(0, 1, 0, 100_000), uniforms(1, 0, 0, 100_000)):
        assert abs(np.corrcoef(x, other)[0, 1]) < 0.02


@pytest.mark.parametrize("name", ["seed", "stream"])
@pytest.mark.parametrize("value", [-1, 1 << 64, 1.5, 2.0])
def test_a_seed_that_is_no_64_bit_number_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        uniforms(**{"seed": 0, "stream": 0, "start": 0, "count": 1, name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [None, 1, 7, 1000, np.int64(3)])
@pytest.mark.parametrize("top_p", [None, 1e-6, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("levels", [2, 37, 256])
def test_both_engines_draw_the_same(
    temperature: float, top_k: int | None, top_p: float | None, levels: int
) -> None:
    rng = np.random.default_rng(levels)
    logits = 3 * rng.standard_normal((100, levels)).astype(np.float32)
    logits[50:] = logits[50:].round()  # many ties
    u = uniforms(levels, 0, 0, 100)
    sampling = Sampling(temperature, top_k, top_p)
    together = sample(torch.from_numpy(logits), torch.from_numpy(u), sampling).tolist()
    assert together == [drawn(row, x, sampling) for row, x in zip(logits, u, strict=True)]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(-20, 20), min_size=2, max_size=12),
    st.integers(0, 2**23 - 1),
    st.none() | st.integers(1, 14),
    st.none() | st.floats(0.01, 1),
)
def test_a_drawn_token_is_one_of_the_likeliest(
    values: list[int], word: int, top_k: int | None, top_p: float | None
) -> None:
    logits, u = np.array(values, np.float32), (2 * word + 1) / 2**24
    sampling = Sampling(1.0, top_k, top_p)
    token = drawn(logits, u, sampling)
    assert token == sampled(logits, u, sampling)
    rank = sorted(range(len(values)), key=lambda i: (-values[i], i))
    kept = rank[:top_k]
    assert token in kept
    weights = np.exp(logits[kept].astype(float) - max(values))
    before = weights[: kept.index(token)].sum()
    assert before <= (top_p or 1) * weights.sum() * (1 + 1e-6)


@pytest.mark.parametrize("engine", [drawn, sampled])
def test_of_equal_logits_the_first_wins(engine: object) -> None:
    assert callable(engine)
    logits = np.array([0, 2, 1, 2, 2], np.float32)
    assert engine(logits, 0.9, Sampling(temperature=0)) == 1
    assert engine(logits, 0.999, Sampling(top_k=1)) == 1
    assert engine(logits, 0.999, Sampling(top_k=2)) == 3
    assert engine(logits, 0.999, Sampling(top_p=1e-9)) == 1


@pytest.mark.parametrize("engine", [drawn, sampled])
def test_extreme_logits_and_temperatures_draw_the_likeliest(engine: object) -> None:
    assert callable(engine)
    logits = np.array([-1e30, 5, -3e38, 0], np.float32)
    for temperature in (1e-3, 1e-30, 1e-44, 1e-60):
        for u in (2**-24, 0.5, 1 - 2**-24):
            assert engine(logits, u, Sampling(temperature)) == 1


@pytest.mark.parametrize("engine", [drawn, sampled])
def test_tokens_are_drawn_as_often_as_they_are_likely(engine: object) -> None:
    assert callable(engine)
    logits = np.log(np.array([1, 2, 0.5, 4, 2.5], np.float32))
    counts = Counter(engine(logits, u, Sampling()) for u in uniforms(0, 0, 0, 2000).tolist())
    for token, share in enumerate([0.1, 0.2, 0.05, 0.4, 0.25]):
        assert abs(counts[token] / 2000 - share) < 0.04


def test_more_levels_than_there_are_keep_all() -> None:
    logits = np.log(np.array([1, 2, 0.5, 4, 2.5], np.float32))
    for u in uniforms(0, 0, 0, 20).tolist():
        assert sampled(logits, u, Sampling(top_k=10**20)) == sampled(logits, u, Sampling())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_logit_that_is_not_finite_is_reported(bad: float) -> None:
    for at in range(4):
        logits = np.arange(4, dtype=np.float32)
        logits[at] = bad
        assert drawn(logits, 0.5, Sampling()) == FAILED
        with pytest.raises(ValueError, match="not finite"):
            sampled(logits, 0.5, Sampling())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": 1e39}, "temperature is 1e"),
        ({"temperature": "1"}, "temperature is '1'; it must be a number"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": "5"}, "top_k is '5'; it must be a whole number"),
        ({"top_k": 5.0}, "top_k is 5.0"),
        ({"top_p": "0.5"}, "top_p is '0.5'"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_p": float("nan")}, "top_p is nan"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Sampling(**options)  # type: ignore[arg-type]
