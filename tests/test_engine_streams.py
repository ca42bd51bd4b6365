"""What every engine that makes streams by one kernel must do, be it in CUDA or in Triton."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch

from audiomamba import checkpoint
from audiomamba.config import ModelConfig, Tier
from audiomamba.engine.choice import choose_engine, open_engine
from audiomamba.engine.engine import Engine
from audiomamba.engine.place import Draw
from audiomamba.engine.prompt import read_prompt
from audiomamba.engine.streams import StreamEngine
from audiomamba.generate import Job, Made, generate_streams
from audiomamba.guard import Guard
from audiomamba.models.waveform import WaveformModel
from audiomamba.sampling import Sampling
from audiomamba.state import leaves
from audiomamba.tokenizer import Tokenizer
from audiomamba_kernels.backend import INTERPRETED
from tests.cuda_on_cpu import emulate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

S6 = Tier(mixer="s6", n_layers=1, d_state=6, d_conv=2)
S6_COMPLEX = Tier(mixer="s6", complex=True, n_layers=2, d_state=6)
LTI = Tier(mixer="lti", n_layers=1, d_state=5, d_conv=1)
LTI_COMPLEX = Tier(mixer="lti", complex=True, n_layers=2, d_state=4, d_conv=3)
S4 = Tier(mixer="s4", n_layers=1, d_state=6, expand=3)

MODELS = {
    "s6": (8, (S6, S6), (2,)),
    "s6-complex": (5, (S6_COMPLEX,), ()),
    "lti": (8, (LTI, LTI), (2,)),
    "lti-complex": (10, (LTI_COMPLEX,), ()),
    "s4": (7, (S4, S4), (2,)),
    "mixed": (3, (LTI_COMPLEX, S4, S6_COMPLEX), (2, 3)),
}
CUT = Sampling(0.8, 20, 0.9)


def make(name: str, bits: int = 5) -> WaveformModel:
    """A model whose every parameter matters: none is left at 0 or 1."""
    d_model, tiers, pools = MODELS[name]
    torch.manual_seed(len(name))
    config = ModelConfig(tokenizer=Tokenizer(bits=bits), d_model=d_model, tiers=tiers, pools=pools)
    network = WaveformModel(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return network.eval().to(DEVICE)


@pytest.fixture(params=["cuda", "triton"])
def name_of_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An engine's name. Without a GPU Triton is interpreted, and CUDA is C++ for the CPU."""
    name: str = request.param
    if name == "triton":
        pytest.importorskip("triton")
        if not (INTERPRETED or torch.cuda.is_available()):
            pytest.skip("Triton needs a GPU or its interpreter")
    elif not torch.cuda.is_available():
        emulate(monkeypatch)
    return name


Build = Callable[..., StreamEngine]


@pytest.fixture
def build(name_of_engine: str) -> Build:
    """Makes an engine of a network; `small` has it work in more and smaller pieces."""

    def build(network: WaveformModel, small: bool = False, **options: Any) -> StreamEngine:
        if name_of_engine == "cuda":
            from audiomamba.engine.cuda_engine import CudaEngine

            return CudaEngine(network, threads=64 if small else 128, **options)
        from audiomamba.engine.triton_engine import TritonEngine

        engine = TritonEngine(network, **options)
        engine.tile = 64 if small else 1024
        return engine

    return build


def tokens_of(streams: Iterable[Made]) -> dict[int, np.ndarray]:
    return {made.index: made.tokens for made in streams}


def draw(streams: Any, samples: int, *options: Any) -> np.ndarray:
    tokens = torch.full((len(streams.logits), samples), -1, dtype=torch.int32, device=DEVICE)
    streams.run(tokens, *options)
    return tokens.cpu().numpy()


@torch.inference_mode()
def step_all(network: WaveformModel, tokens: np.ndarray) -> tuple[torch.Tensor, Any]:
    """Logits of every token by the PyTorch step, (samples, levels), and the state at the end."""
    state, rows = network.initial_state(1), []
    previous = network.config.tokenizer.silence
    for t, token in enumerate(tokens.tolist()):
        given = torch.tensor([previous], device=DEVICE)
        row, state = network.step(given, state, t % network.config.period)
        rows.append(row[0])
        previous = token
    return torch.stack(rows), state


@pytest.mark.parametrize("name", MODELS)
def test_logits_state_and_likelihood_equal_those_of_the_pytorch_step(
    name: str, build: Build
) -> None:
    network = make(name)
    levels = network.config.tokenizer.levels
    tokens = np.random.default_rng(0).integers(0, levels, network.config.period + 2)
    expected, state = step_all(network, tokens)
    streams = build(network, small=True).start()
    streams.run(torch.from_numpy(tokens)[None].to(DEVICE, torch.int32))
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(streams.logits[0], expected[-1], rtol=0, atol=1e-5 * scale)
    for mine, theirs in zip(streams.state(), leaves(state), strict=True):
        torch.testing.assert_close(mine, theirs.cpu(), rtol=1e-4, atol=1e-5)
    nats = -torch.log_softmax(expected.double(), dim=-1)[range(len(tokens)), tokens].sum()
    torch.testing.assert_close(streams.nats[0], nats, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_samples_as_on_a_cpu(name: str, build: Build) -> None:
    network = make(name)
    samples = network.config.period + 1
    made = draw(build(network).start(streams=2), samples, Sampling(), 2**64 - 5, 2**33 + 3)
    engine = Engine(network)
    for i, tokens in enumerate(made):
        expected = np.full(samples, -1)
        engine.start().run(expected, Sampling(), 2**64 - 5, 2**33 + 3 + i)
        assert np.array_equal(tokens, expected)


@pytest.mark.parametrize("length", [0, 1, 5], ids="prompt-{}".format)
@pytest.mark.parametrize("sampling", [Sampling(0), CUT], ids=["greedy", "cut"])
def test_all_engines_make_the_same(length: int, sampling: Sampling, name_of_engine: str) -> None:
    network = make("lti")
    prompt = np.random.default_rng(1).integers(0, 32, length)
    job = Job(samples=4, seed=3, sampling=sampling, prompt=prompt)
    made = {
        engine: tokens_of(generate_streams(network, job, num=2, first=4, engine=engine))
        for engine in (name_of_engine, "torch")
    }
    for index in (4, 5):
        assert np.array_equal(made[name_of_engine][index], made["torch"][index])
        assert made[name_of_engine][index].dtype == np.uint8


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(2, 3), Sampling(0.5, None, 0.3), CUT])
def test_a_flat_distribution_is_cut_by_the_same_rules(sampling: Sampling, build: Build) -> None:
    network = make("lti")
    with torch.no_grad():  # ties everywhere
        network.head.weight.zero_()
        network.head.bias.copy_(torch.arange(32) % 3)
    made = draw(build(network).start(streams=2), 4, sampling, 7)
    engine = Engine(network)
    for i, tokens in enumerate(made):
        expected = np.full(4, -1)
        engine.start().run(expected, sampling, 7, i)
        assert np.array_equal(tokens, expected)


def test_a_stream_cut_anywhere_goes_on_as_the_whole(build: Build) -> None:
    network = make("lti")
    whole = build(network).start(streams=2)
    expected = draw(whole, 6, CUT, 1, 5)
    streams = build(network).start(streams=2)
    parts = [draw(streams, count, CUT, 1, 5) for count in (1, 0, 3)]
    again = build(network).start(
        streams=2,
        state=streams.state(),
        position=streams.positions,
        previous=int(parts[-1][0, -1]),
    )
    rest = draw(streams, 2, CUT, 1, 5)
    assert np.array_equal(np.concatenate([*parts, rest], axis=1), expected)
    assert np.array_equal(draw(again, 2, CUT, 1, 5)[0], expected[0, 4:])
    assert streams.positions == whole.positions == [6, 6]
    torch.testing.assert_close(streams.nats, whole.nats)


def test_more_levels_are_cut_with_fewer_bits_at_once(build: Build) -> None:
    network = make("lti", bits=10)
    made = draw(build(network).start(), 3, CUT)
    expected = np.full(3, -1)
    Engine(network).start().run(expected, CUT)
    assert np.array_equal(made[0], expected)
    assert made.max() > 255


def test_given_tokens_are_kept_and_the_rest_is_drawn(build: Build) -> None:
    network = make("lti")
    free = draw(build(network).start(), 8)
    forced = torch.from_numpy(np.where(np.arange(8) % 3 == 0, free, -1)).to(DEVICE)
    build(network).start().run(forced)
    assert np.array_equal(forced.cpu(), free)


def test_matrices_in_bfloat16_are_near(build: Build) -> None:
    network = make("s6")
    tokens = torch.randint(0, 32, (1, 6), dtype=torch.int32, device=DEVICE)
    exact, near = (build(network, dtype=dtype).start() for dtype in (torch.float32, torch.bfloat16))
    exact.run(tokens)
    near.run(tokens)
    assert not torch.equal(near.logits, exact.logits)
    torch.testing.assert_close(near.logits, exact.logits, rtol=0, atol=0.1)


def test_weights_that_make_nan_are_reported_with_the_sample(
    build: Build, name_of_engine: str
) -> None:
    network = make("lti")
    with torch.no_grad():
        network.embedding.weight[20, 0] = float("nan")
    streams = build(network).start()
    tokens = torch.tensor([[1, 20, -1, -1]], dtype=torch.int32, device=DEVICE)
    streams.run(tokens)
    assert tokens.tolist() == [[1, 20, -1, -1]]
    job = Job(samples=3, prompt=np.array([1, 20]))
    with pytest.raises(ValueError, match="not finite at sample 2"):
        tokens_of(generate_streams(network, job, engine=name_of_engine))


def test_a_stream_that_failed_draws_no_more(build: Build) -> None:
    streams = build(make("lti")).start(streams=2)
    streams._stream[0, 1] = -1  # the first of the two has failed
    given = torch.tensor([[-1, -1, 3, -1, -1]] * 2, dtype=torch.int32, device=DEVICE)
    streams.run(given)
    assert given[0].tolist() == [-1, -1, 3, -1, -1]
    assert (given[1] >= 0).all()
    assert (draw(streams, 2) >= 0).tolist() == [[False] * 2, [True] * 2]
    assert streams.previous()[0] == -1


def test_what_cannot_run_is_refused(build: Build, name_of_engine: str) -> None:
    network = make("lti")
    engine = build(network)
    with pytest.raises(ValueError, match=r"dtype is torch\.float16"):
        build(network, dtype=torch.float16)
    with pytest.raises(ValueError, match="8192 levels; an engine on a GPU at most 4096"):
        build(make("lti", bits=13))
    with pytest.raises(ValueError, match="8192 levels"):
        generate_streams(make("lti", bits=13), Job(samples=1), engine=name_of_engine)
    with pytest.raises(ValueError, match="previous is 32"):
        engine.start(previous=32)
    with pytest.raises(ValueError, match="came where"):
        engine.start(leaves(network.initial_state(3)), streams=2)
    streams = engine.start(streams=2)
    for tokens, match in (
        (torch.zeros(1, 4, dtype=torch.int32), "shape"),
        (torch.zeros(4, 2, dtype=torch.int32).T, "contiguous"),
        (torch.zeros(2, 4, dtype=torch.int64), "int64"),
    ):
        with pytest.raises(ValueError, match=match):
            streams.run(tokens.to(DEVICE))


def test_streams_are_taken_back_as_on_a_cpu(name_of_engine: str) -> None:
    guard = Guard(bits=4.9, seconds=6 / 16000, back=9 / 16000, tries=2)
    job = Job(samples=14, seed=4, guard=guard)
    expected = list(generate_streams(make("mixed").cpu(), job, num=2, batch=2, engine="numba"))
    taken = [one.rewinds.times for one in expected if one.rewinds is not None]
    assert max(taken) > 0
    found = generate_streams(make("mixed"), job, num=2, engine=name_of_engine)
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.tokens, other.tokens)
        assert one.rewinds == other.rewinds
        assert one.nats == pytest.approx(other.nats, rel=1e-5)


def test_attention_is_refused(name_of_engine: str) -> None:
    tier = Tier(mixer="attention", n_heads=2, n_layers=1)
    network = WaveformModel(ModelConfig(d_model=8, tiers=(tier,), pools=())).to(DEVICE)
    with pytest.raises(ValueError, match="no attention; use 'torch'"):
        generate_streams(network, Job(samples=1), engine=name_of_engine)


@pytest.fixture(scope="module")
def piano() -> WaveformModel:
    return checkpoint.load(checkpoint.find("piano")).eval().cuda()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["piano", "digits"])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0), Sampling(0.95, 100, 0.98)])
def test_a_shipped_model_speaks_as_in_pytorch(
    name: str, sampling: Sampling, name_of_engine: str
) -> None:
    network = checkpoint.load(checkpoint.find(name)).eval().cuda()
    assert choose_engine(network) == "cuda"
    prompt = np.random.default_rng(0).integers(96, 160, 700)
    job = Job(samples=300, seed=5, sampling=sampling, prompt=prompt)
    made = tokens_of(generate_streams(network, job, num=2, engine=name_of_engine))
    expected = tokens_of(generate_streams(network, job, num=2, engine="torch"))
    for index in range(2):
        # A number that falls on the edge between two levels, to rounding, may be drawn otherwise.
        assert np.array_equal(made[index][:200], expected[index][:200])


@pytest.mark.gpu
def test_streams_that_fill_a_gpu_end_without_more_of_it(
    piano: WaveformModel, name_of_engine: Any
) -> None:
    opened = open_engine(piano, name_of_engine)
    begin = read_prompt(piano, opened, [np.full(300, 128)])
    assert {leaf.device.type for leaf in begin.state} == {"cpu"}
    running = opened.start([begin] * 64, Draw())
    list(running.blocks(8))
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    places = running.places()
    assert {leaf.device.type for place in places for leaf in place.state} == {"cpu"}
    assert torch.cuda.max_memory_allocated() - held < 1 << 20


@pytest.mark.gpu
def test_a_stream_does_not_depend_on_those_beside_it(
    piano: WaveformModel, name_of_engine: str
) -> None:
    job = Job(samples=2500, seed=9)
    together = tokens_of(generate_streams(piano, job, num=64, engine=name_of_engine))
    for index in (0, 1, 63):
        alone = tokens_of(generate_streams(piano, job, first=index, engine=name_of_engine))
        assert np.array_equal(alone[index], together[index])


@pytest.mark.gpu
def test_likelihood_is_that_of_the_model(piano: WaveformModel, build: Build) -> None:
    engine = build(piano)
    streams = engine.start(streams=4)
    tokens = torch.full((4, 4096), -1, dtype=torch.int32, device="cuda")
    streams.run(tokens)
    with torch.inference_mode():
        expected = piano.nll(tokens.long()).double().mean(dim=1)
    bits = 1 / (np.log(2) * tokens.shape[1])
    torch.testing.assert_close(streams.nats * bits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "samples"),
    [
        ("lti", 16),
        pytest.param("piano", 16000, marks=pytest.mark.gpu),
        pytest.param("digits", 16000, marks=pytest.mark.gpu),
    ],
)
def test_a_model_in_bfloat16_finds_a_clip_as_likely(
    name: str, samples: int, name_of_engine: Any
) -> None:
    network = make(name) if name in MODELS else checkpoint.load(checkpoint.find(name)).to(DEVICE)
    (clip,) = generate_streams(network.eval(), Job(samples=samples), engine=name_of_engine)
    nothing = np.empty(0, np.int64)
    nats = []
    for weights in ("float32", "bfloat16"):
        opened = open_engine(network, name_of_engine, weights=weights)
        running = opened.start([read_prompt(network, opened, [nothing])], Draw())
        running.read(clip.tokens)
        nats.append(float(running.nats()[0]))
    assert nats[0] == pytest.approx(clip.nats)
    # A weight has 8 bits: it is off by 0.2 % at most, this way or that.
    assert 0 < abs(nats[1] - nats[0]) / (np.log(2) * samples) < 0.002
    job = Job(samples=2)
    exact, near = (
        next(generate_streams(network, job, engine=name_of_engine, weights=weights)).nats
        for weights in ("float32", "bfloat16")
    )
    assert exact != near
