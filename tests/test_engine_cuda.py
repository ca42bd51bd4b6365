"""The CUDA kernel alone; what it shares with the Triton kernel is in test_engine_streams.py."""

from __future__ import annotations

import dataclasses
import logging
import re
import threading
import types

import numpy as np
import pytest
import torch

from audiomamba import checkpoint
from audiomamba.audiomodel import AudioModel
from audiomamba.config import ModelConfig, Tier, unet
from audiomamba.engine import choice, cuda_limits
from audiomamba.engine.cuda_engine import CudaEngine, to_kernel, to_layout
from audiomamba.engine.cuda_plan import plan_cuda
from audiomamba.engine.cuda_products import choose_product, lanes_of
from audiomamba.engine.layout import Layout
from audiomamba.generate import Job, generate_streams
from audiomamba.models.waveform import WaveformModel
from audiomamba.sampling import Sampling
from audiomamba.tokenizer import Tokenizer
from tests.cuda_on_cpu import emulate

REAL = Tier(mixer="s6")
WIDE = {
    "s6": unet(48, 2, (2,), REAL, Tier(mixer="s6", d_state=32)),
    "complex": unet(32, 1, (2,), Tier(complex=True, d_conv=6), Tier(mixer="s4", d_state=32)),
    "lti": unet(80, 1, (), REAL, Tier(mixer="lti", complex=True)),
}


def network_of(config: ModelConfig) -> WaveformModel:
    network = WaveformModel(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return network.eval()


@pytest.mark.parametrize("outputs", [1, 5, 36, 64, 500, 3000])
@pytest.mark.parametrize("threads", [64, 512])
def test_every_weight_is_dealt_to_one_thread(outputs: int, threads: int) -> None:
    for inputs in (3, 64, 250):
        product = choose_product(inputs, outputs, threads)
        matrix = np.arange(1, inputs * outputs + 1, dtype=np.float32).reshape(inputs, outputs)
        dealt = product.deal(matrix, product.outputs_of())
        assert dealt.shape == (product.steps * product.rows, threads, 4)
        assert np.array_equal(np.sort(dealt[dealt > 0]), matrix.reshape(-1))


def test_lanes_of_a_channel_are_a_power_of_two_within_a_warp() -> None:
    assert [lanes_of(channels, 512) for channels in (1, 6, 100, 128, 512, 4000)] == [
        *(32, 32, 4, 4, 1, 1)
    ]


@pytest.mark.parametrize("name", WIDE)
def test_a_state_goes_to_the_kernel_and_back(name: str) -> None:
    layout = Layout(network_of(WIDE[name]))
    plan = plan_cuda(layout, narrow=False, threads=128)
    flat = torch.zeros(2, layout.state_size)
    for leaf in layout.leaves:
        flat[:, leaf.at : leaf.at + leaf.size] = torch.randn(2, leaf.size)
    state = to_kernel(plan.order, flat)
    assert (state[:, plan.order < 0] == 0).all()
    assert torch.equal(to_layout(plan.order, state, layout.state_size), flat)


@pytest.mark.parametrize("threads", [64, 256])
@pytest.mark.parametrize("name", WIDE)
def test_wide_models_are_dealt_to_any_count_of_threads(
    name: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        emulate(monkeypatch)
    network = network_of(WIDE[name]).to(device)
    tokens = torch.randint(0, 256, (1, 5), device=device)
    with torch.inference_mode():
        expected = network.nll(tokens)[0].double().sum() * np.log(2)
    streams = CudaEngine(network, threads=threads).start()
    streams.run(tokens.int())
    torch.testing.assert_close(streams.nats[0], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("threads", [256, 512])
def test_draws_are_cut_alike_by_any_count_of_threads(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        emulate(monkeypatch)
    tier = Tier(mixer="lti", n_layers=1, d_state=2, d_conv=2)
    network = network_of(
        ModelConfig(tokenizer=Tokenizer(bits=6), d_model=4, tiers=(tier,), pools=())
    )
    engine = CudaEngine(network.to(device), threads=threads)
    for sampling in (Sampling(0.8, 20), Sampling(1, None, 0.7), Sampling(2, 40, 0.5)):
        tokens = torch.full((1, 4), -1, dtype=torch.int32, device=device)
        engine.start().run(tokens, sampling, seed=3)
        job = Job(samples=4, seed=3, sampling=sampling)
        (expected,) = generate_streams(network, job, engine="torch")
        assert np.array_equal(tokens[0].cpu(), expected.tokens)


def test_threads_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="threads is 96"):
        CudaEngine(network_of(WIDE["s6"]), threads=96)


def network_on_a_gpu(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> WaveformModel:
    """Its device is meta, which stands for a GPU, on which everything but PyTorch can run."""
    with torch.device("meta"):
        network = WaveformModel(config)
    monkeypatch.setattr(choice, "why_not", lambda backend, x: None)
    monkeypatch.setattr(choice, "why_not_cuda", lambda device: None)
    properties = types.SimpleNamespace(shared_memory_per_block_optin=99 * 1024)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(choice, "_failed", [])
    return network


def test_what_failed_by_some_weights_is_chosen_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_on_a_gpu(ModelConfig(), monkeypatch)
    choice._failed.append(choice._key("cuda", network, "bfloat16"))
    assert choice.check_engine(network, None, "bfloat16") == "triton"
    assert AudioModel(network, weights="bfloat16").engine == "triton"  # what a record says
    assert choice.check_engine(network, None) == AudioModel(network).engine == "cuda"


def test_where_it_cannot_run_triton_does_and_it_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    network = network_on_a_gpu(ModelConfig(), monkeypatch)
    assert choice.check_engine(network, None) == "cuda"
    monkeypatch.setattr(choice, "why_not_cuda", lambda device: "NVRTC is lost")
    choice._warn_of_triton.cache_clear()
    monkeypatch.setattr(torch.version, "cuda", None)  # as on a GPU that is none of NVIDIA's
    assert choice.check_engine(network, None) == "triton"
    assert not caplog.messages
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with caplog.at_level(logging.WARNING):
        assert [choice.check_engine(network, None) for _ in range(2)] == ["triton"] * 2
    assert caplog.messages == [
        "the cuda engine cannot run: NVRTC is lost; Triton generates, at half the speed"
    ]


def test_what_fails_to_open_is_told_once_and_the_next_is_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    network = network_on_a_gpu(ModelConfig(), monkeypatch)
    broken: dict[str, Exception] = {"cuda": RuntimeError("cannot be compiled:\n no builtins")}
    opened: list[str] = []

    def stream_engine(network: WaveformModel, name: str, *others: object) -> None:
        opened.append(name)
        if name in broken:
            raise broken[name]

    monkeypatch.setattr(choice, "_stream_engine", stream_engine)
    monkeypatch.setattr(choice, "read_prompt", lambda *arguments: None)
    assert choice.choose_engine(network) == "cuda"
    for _ in range(2):
        assert choice.open_engine(network).together == choice.TOGETHER
        assert choice.choose_engine(network) == "triton"
    assert opened == ["cuda", "triton", "triton"]
    assert caplog.messages == [
        "the cuda engine cannot run: cannot be compiled: no builtins; triton generates"
    ]
    with pytest.raises(RuntimeError, match="no builtins"):
        choice.open_engine(network, "cuda")
    broken["triton"] = MemoryError("too many registers")
    assert choice.open_engine(network).together == choice.STEPPED_TOGETHER
    assert caplog.messages[1] == (
        "the triton engine cannot run: too many registers; torch generates"
    )


def test_it_is_opened_without_triton_which_needs_a_compiler_of_c(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = network_on_a_gpu(ModelConfig(), monkeypatch)
    asked: list[object] = []
    monkeypatch.setattr(choice, "_stream_engine", lambda *arguments: "engine")
    monkeypatch.setattr(choice, "read_prompt", lambda network, opened, pieces: asked.append(pieces))
    running = types.SimpleNamespace(read=lambda tokens: asked.append(tokens.tolist()))
    monkeypatch.setattr(choice, "LaunchedStreams", lambda engine, places, draw: running)
    choice.open_engine(network)
    assert asked == [[], [0]]


def test_no_memory_is_no_reason_to_take_another(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_on_a_gpu(ModelConfig(), monkeypatch)

    def stream_engine(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(choice, "_stream_engine", stream_engine)
    with pytest.raises(torch.OutOfMemoryError):
        choice.open_engine(network)
    assert choice.choose_engine(network) == "cuda"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (unet(256, 2, (4, 4), REAL, REAL), "would hold 736 numbers, more than 256"),
        (
            dataclasses.replace(unet(512, 1, (), REAL, REAL), tokenizer=Tokenizer(bits=12)),
            "needs 59",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_a_reason(
    config: ModelConfig, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_on_a_gpu(config, monkeypatch)
    properties = types.SimpleNamespace(shared_memory_per_block_optin=48 * 1024)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert choice.choose_engine(network) == "triton"
    with pytest.raises(ValueError, match=reason):
        choice.check_engine(network, "cuda")


@pytest.mark.parametrize("threads", [64, 256])
@pytest.mark.parametrize("name", [*WIDE, "default"])
def test_what_a_model_asks_for_is_what_is_laid_out(name: str, threads: int) -> None:
    config = WIDE.get(name, ModelConfig())
    plan = plan_cuda(Layout(WaveformModel(config)), narrow=False, threads=threads)
    assert cuda_limits.shared_bytes(config) == plan.shared_bytes
    tiers = [
        dict(re.findall(r"int (\w+) = (\d+);", tier))
        for tier in plan.header.split("struct Tier")[1:]
    ]
    held = [
        4 * int(tier["PASSES"]) * sum(int(tier[part]) for part in ("VECTORS", "PAST", "STATES"))
        for tier in tiers
    ]
    assert cuda_limits.numbers_held(config, threads) == max(held)


@pytest.mark.gpu
@pytest.mark.parametrize("threads", [128, 256, 1024])
def test_any_count_of_threads_makes_the_same(threads: int) -> None:
    piano = checkpoint.load(checkpoint.find("piano")).eval().cuda()
    tokens = torch.full((2, 3, 600), -1, dtype=torch.int32, device="cuda")
    for out, count in zip(tokens, (512, threads), strict=True):
        CudaEngine(piano, threads=count).start(streams=3).run(out, Sampling(0))
    assert torch.equal(tokens[0, :, :100], tokens[1, :, :100])


@pytest.mark.gpu
def test_the_kernel_is_loaded_once_and_runs_in_any_thread() -> None:
    piano = checkpoint.load(checkpoint.find("piano")).eval().cuda()
    engines = [CudaEngine(piano) for _ in range(2)]
    assert engines[0].kernel is engines[1].kernel
    tokens = torch.full((2, 2, 50), -1, dtype=torch.int32, device="cuda")
    engines[0].start(streams=2).run(tokens[0])
    thread = threading.Thread(target=engines[1].start(streams=2).run, args=(tokens[1],))
    thread.start()
    thread.join()
    torch.cuda.synchronize()
    assert (tokens >= 0).all()
    assert torch.equal(tokens[0], tokens[1])
