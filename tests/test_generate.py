from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np
import pytest
import torch

from audiomamba import generate
from audiomamba.config import ModelConfig, Tier
from audiomamba.engine import choice
from audiomamba.engine.choice import check_engine, choose_engine, open_engine
from audiomamba.engine.prompt import read_prompt
from audiomamba.generate import Job, generate_streams
from audiomamba.models.waveform import WaveformModel
from audiomamba.sampling import Sampling
from audiomamba.tokenizer import Tokenizer

TIERS = (
    Tier(mixer="lti", complex=True, n_layers=1, d_state=4),
    Tier(mixer="s6", complex=True, n_layers=1, d_state=4),
)


@pytest.fixture(scope="module")
def network() -> WaveformModel:
    torch.manual_seed(0)
    return WaveformModel(ModelConfig(d_model=32, tiers=TIERS, pools=(3,))).eval()


@pytest.fixture(scope="module")
def attention() -> WaveformModel:
    torch.manual_seed(0)
    tier = Tier(mixer="attention", n_heads=2, n_layers=1, context=5)
    return WaveformModel(ModelConfig(d_model=8, tiers=(TIERS[0], tier), pools=(3,))).eval()


def make(network: WaveformModel, job: Job, **options: object) -> dict[int, np.ndarray]:
    streams = generate_streams(network, job, **options)  # type: ignore[arg-type]
    return {made.index: made.tokens for made in streams}


def prompt(samples: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, samples)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 10])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, 50, 0.9)], ids=["all", "cut"])
def test_both_engines_make_the_same(
    network: WaveformModel, length: int, sampling: Sampling
) -> None:
    # An engine may differ where a random number falls on an edge between two levels, to rounding:
    # about once in 10^5 samples.
    job = Job(samples=100, seed=3, sampling=sampling, prompt=prompt(length))
    compiled = make(network, job, num=2, engine="numba")
    stepped = make(network, job, num=2, engine="torch")
    for index in range(2):
        assert compiled[index].shape == (100,)
        assert compiled[index].dtype == stepped[index].dtype == np.uint8
        assert np.array_equal(compiled[index], stepped[index])


@pytest.mark.parametrize(("engine", "threads"), [("numba", 1), ("numba", 2), ("torch", 1)])
def test_a_stream_depends_on_seed_and_index_alone(
    network: WaveformModel, engine: str, threads: int
) -> None:
    torch.set_num_threads(threads)
    job = Job(samples=40, seed=9)
    together = make(network, job, num=3, engine=engine)
    assert sorted(together) == [0, 1, 2]
    for index in range(3):
        alone = make(network, job, first=index, engine=engine)
        assert np.array_equal(alone[index], together[index])
    assert not np.array_equal(together[0], together[1])
    other = make(network, Job(samples=40, seed=10), engine=engine)
    assert not np.array_equal(other[0], together[0])


def test_a_batch_is_smaller_where_the_host_would_hold_too_much(
    network: WaveformModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(2)
    job = Job(samples=20)
    expected = make(network, job, num=5)
    monkeypatch.setattr(generate, "HELD", 47)
    began: list[int] = []
    start = generate.start_fitting
    monkeypatch.setattr(
        generate, "start_fitting", lambda *given: (began.append(len(given[1])), start(*given))[1]
    )
    found = make(network, job, num=5)
    assert began == [2, 2, 1]
    assert all(np.array_equal(found[i], expected[i]) for i in range(5))
    make(network, job, num=5, batch=5)  # as asked for
    assert began[3:] == [5]


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_a_shorter_job_is_the_beginning_of_a_longer(network: WaveformModel, engine: str) -> None:
    short = make(network, Job(samples=17), engine=engine)[0]
    long = make(network, Job(samples=40), engine=engine)[0]
    assert np.array_equal(short, long[:17])


def test_what_was_made_continues_as_a_prompt(network: WaveformModel) -> None:
    whole = make(network, Job(samples=60))[0]
    for cut in (1, 30, 31):
        rest = make(network, Job(samples=60 - cut, prompt=whole[:cut]))[0]
        assert np.array_equal(rest, whole[cut:])


def test_a_long_prompt_is_read_in_chunks(
    network: WaveformModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, tokens = open_engine(network), prompt(100)
    whole = read_prompt(network, opened, [tokens])
    monkeypatch.setattr("audiomamba.engine.prompt.CHUNK", 10)
    for pieces in ([tokens], [tokens[:1], tokens[1:50], tokens[50:50], tokens[50:]]):
        parts = read_prompt(network, opened, iter(pieces))
        assert (parts.position, parts.previous) == (100, tokens[-1])
        torch.testing.assert_close(whole.state, parts.state)


def test_a_prompt_that_does_not_fit_is_read_in_smaller_chunks(
    network: WaveformModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened, tokens = open_engine(network), prompt(100)
    whole = read_prompt(network, opened, [tokens])
    fits, forward = 20, WaveformModel.forward

    def narrow(self: WaveformModel, tokens: torch.Tensor, state: Any) -> Any:
        if tokens.shape[1] > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, tokens, state)

    monkeypatch.setattr(WaveformModel, "forward", narrow)
    monkeypatch.setattr("audiomamba.engine.prompt.CHUNK", 60)
    parts = read_prompt(network, opened, [tokens])
    assert (parts.position, parts.previous) == (whole.position, whole.previous)
    torch.testing.assert_close(whole.state, parts.state)
    told = [r.getMessage() for r in caplog.records if r.name == "audiomamba.engine.prompt"]
    assert told == ["the prompt does not fit into memory; it is read by 15 samples"]
    fits = 2
    with pytest.raises(MemoryError, match="3 samples of the prompt do not fit into the device's"):
        read_prompt(network, opened, [tokens])
    assert read_prompt(network, opened, [tokens[:2]]).position == 2  # less than a period: stepped


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_tokens_of_more_than_8_bits_are_uint16(engine: str) -> None:
    torch.manual_seed(0)
    config = ModelConfig(tokenizer=Tokenizer(bits=10), d_model=8, tiers=TIERS, pools=(3,))
    tokens = make(WaveformModel(config).eval(), Job(samples=70), engine=engine)[0]
    assert tokens.dtype == np.uint16
    assert tokens.max() > 255


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_progress_counts_every_sample(network: WaveformModel, engine: str) -> None:
    counts: list[int] = []
    thread = threading.get_ident()

    def count(made: int) -> None:
        assert threading.get_ident() == thread
        counts.append(made)

    samples = {"numba": 5000, "torch": 50}[engine]
    make(network, Job(samples=samples, prompt=prompt(4)), num=2, engine=engine, progress=count)
    assert sum(counts) == 2 * samples
    assert len(counts) > 1


def test_closing_the_iterator_stops_the_work(network: WaveformModel) -> None:
    torch.set_num_threads(2)
    before = threading.active_count()
    streams = generate_streams(network, Job(samples=5000), num=1000)
    next(iter(streams))
    streams.close()
    assert threading.active_count() == before


def test_an_interrupt_stops_the_work(network: WaveformModel) -> None:
    def interrupt(made: int) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        make(network, Job(samples=5_000_000), progress=interrupt)
    assert threading.active_count() == before


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_weights_that_make_nan_are_reported(engine: str) -> None:
    broken = WaveformModel(ModelConfig(d_model=32, tiers=TIERS, pools=(3,))).eval()
    with torch.no_grad():
        broken.head.bias[7] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        make(broken, Job(samples=5), engine=engine)


@pytest.mark.gpu
def test_a_gpu_s_streams_depend_on_seed_and_index_alone() -> None:
    torch.manual_seed(0)
    network = WaveformModel(ModelConfig()).eval().cuda()
    job = Job(samples=40, prompt=prompt(300), sampling=Sampling(0.9, 100, 0.95))
    assert choose_engine(network) == "cuda"
    together = make(network, job, num=10)
    for index in (0, 7, 9):
        assert np.array_equal(make(network, job, first=index)[index], together[index])
    on_cpu = make(network.cpu(), job)[0]
    assert np.array_equal(on_cpu[:20], together[0][:20])


def test_attention_runs_in_pytorch_and_says_so(
    network: WaveformModel, attention: WaveformModel
) -> None:
    assert choose_engine(network) == "numba"
    assert choose_engine(attention) == "torch"
    job = Job(samples=20, prompt=prompt(4))
    assert make(attention, job, num=2)[1].shape == (20,)
    with pytest.raises(ValueError, match="no attention"):
        make(attention, job, engine="numba")


def test_a_slow_choice_is_told_once_with_its_reason(
    network: WaveformModel,
    attention: WaveformModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def told(network: WaveformModel, name: Any = None) -> list[str]:
        caplog.clear()
        assert [check_engine(network, name) for _ in range(2)] == [
            name or choose_engine(network)
        ] * 2
        return caplog.messages

    choice._warn_of_torch.cache_clear()
    assert told(network) == told(attention, "torch") == []
    slowly = "PyTorch generates, slowly"
    assert told(attention) == [f"the numba engine cannot run: it has no attention; {slowly}"]
    with torch.device("meta"):  # stands for a GPU
        there = WaveformModel(network.config)
        fine = WaveformModel(dataclasses.replace(network.config, tokenizer=Tokenizer(bits=13)))
        attending = WaveformModel(attention.config)
    monkeypatch.setattr(choice, "why_not", lambda backend, x: "triton is not installed")
    none = f"the triton engine cannot run: triton is not installed; {slowly}"
    assert told(there) == [none]
    monkeypatch.setattr(choice, "why_not", lambda backend, x: None)
    assert told(attending) == [f"the triton engine cannot run: it has no attention; {slowly}"]
    pytest.importorskip("triton")
    assert choose_engine(there) == "triton"
    (many,) = told(fine)
    assert "the model has 8192 levels, more than 4096" in many


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num": 0}, "num is 0"),
        ({"num": 1.5}, "num is 1.5"),
        ({"first": -1}, "first -1"),
        ({"first": "0"}, "first is '0'"),
        ({"engine": "x"}, "engine is 'x'"),
    ],
)
def test_counts_out_of_range_are_refused_at_once(
    network: WaveformModel, options: dict[str, object], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        generate_streams(network, Job(samples=1), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("token", [-1, 256])
def test_a_prompt_of_other_tokens_is_refused(network: WaveformModel, token: int) -> None:
    with pytest.raises(ValueError, match="levels 0 to 255"):
        generate_streams(network, Job(samples=1, prompt=np.array([3, token])))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"samples": 0}, "samples is 0"),
        ({"samples": 10.5}, "samples is 10.5; it must be a whole number"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1.5}, "seed is 1.5; it must be a whole number"),
    ],
)
def test_jobs_out_of_range_are_refused(options: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Job(**{"samples": 1, **options})  # type: ignore[arg-type]
