"""An encoder that streams puts out what it does over the whole, however its input is cut."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from audiomamba import EncoderConfig, MambaEncoder
from audiomamba.encoder import EncoderState, windows
from audiomamba.state import leaves, map_state
from tests.covering import covering

SMALL = EncoderConfig(
    d_input=5, d_model=6, n_layers=2, d_state=4, subsampling=2, feed_forward=2, conv_kernel=5
)
KINDS = {"mixer": ("s6", "lti"), "complex": (False, True), "subsampling": (1, 2, 4)}
CAUSAL = covering({**KINDS, "conv_kernel": (0, 1, 4), "d_conv": (1, 4)})
CHUNKED = covering(
    {
        **KINDS,
        "direction": ("inner", "outer"),
        "conv_kernel": (0, 1, 7),
        "chunk": (1, 3, 30),
        "lookahead": (0, 2, 5),
    }
)
CUTS = [0, 1, 2, 3, 4, 5, 5, 12]  # frames one by one, no frame, and several


def small(**options: Any) -> MambaEncoder:
    torch.manual_seed(0)
    return MambaEncoder(dataclasses.replace(SMALL, **options)).double().eval()


def streamed(encoder: MambaEncoder, x: Tensor, cuts: list[int]) -> tuple[list[Tensor], Tensor]:
    """Return what each piece puts out, and what comes at the end."""
    state, ys, bounds = None, [], [0, *sorted(cuts), x.shape[1]]
    for start, stop in itertools.pairwise(bounds):
        y, state = encoder.stream(x[:, start:stop], state)
        ys.append(y)
    assert state is not None
    return ys, encoder.finish(state)


@pytest.mark.parametrize("case", CAUSAL, ids=str)
def test_a_causal_stream_equals_the_whole(case: dict[str, Any]) -> None:
    encoder = small(direction="causal", **case)
    assert encoder.latency == case["subsampling"] - 1
    x = torch.randn(2, 21, 5, dtype=torch.float64, requires_grad=True)
    whole, lengths = encoder(x)
    ys, rest = streamed(encoder, x, CUTS)
    assert rest.shape == (2, 0, 6)
    got = torch.cat(ys, dim=1)
    assert got.shape[1] == lengths[0]
    torch.testing.assert_close(got, whole, rtol=1e-9, atol=1e-9)
    (a,) = torch.autograd.grad(whole.square().sum(), x)
    (b,) = torch.autograd.grad(got.square().sum(), x)
    torch.testing.assert_close(b, a, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("case", CHUNKED, ids=str)
def test_a_stream_in_chunks_equals_its_offline_form(case: dict[str, Any]) -> None:
    encoder = small(**case)
    x = torch.randn(2, 21, 5, dtype=torch.float64, requires_grad=True)
    whole, lengths = encoder(x)
    ys, rest = streamed(encoder, x, CUTS)
    got = torch.cat([*ys, rest], dim=1)
    assert got.shape[1] == lengths[0]
    torch.testing.assert_close(got, whole, rtol=1e-9, atol=1e-9)
    (a,) = torch.autograd.grad(whole.square().sum(), x)
    (b,) = torch.autograd.grad(got.square().sum(), x)
    torch.testing.assert_close(b, a, rtol=1e-8, atol=1e-8)


@settings(max_examples=15, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 30), max_size=6),
    steps=st.integers(0, 30),
    direction=st.sampled_from(["causal", "inner", "outer"]),
    chunk=st.integers(1, 6),
    lookahead=st.integers(0, 4),
)
def test_any_cut_of_any_length(
    cuts: list[int], steps: int, direction: str, chunk: int, lookahead: int
) -> None:
    options = {} if direction == "causal" else {"chunk": chunk, "lookahead": lookahead}
    encoder = small(direction=direction, n_layers=1, **options)
    x = torch.randn(1, 30, 5, dtype=torch.float64)[:, :steps]
    with torch.no_grad():
        ys, rest = streamed(encoder, x, [min(cut, steps) for cut in cuts])
        torch.testing.assert_close(torch.cat([*ys, rest], dim=1), encoder(x)[0])


@pytest.mark.parametrize(("chunk", "lookahead"), [(1, 0), (3, 2), (2, 5)])
@pytest.mark.parametrize("direction", ["inner", "outer"])
def test_no_frame_waits_longer_than_the_latency(direction: str, chunk: int, lookahead: int) -> None:
    encoder = small(direction=direction, n_layers=1, chunk=chunk, lookahead=lookahead)
    state, waits, out = None, [], 0
    for t in range(30):
        y, state = encoder.stream(torch.randn(1, 1, 5, dtype=torch.float64), state)
        # Input frames 2 i and 2 i + 1 make frame i.
        waits += [t - at for i in range(out, out + y.shape[1]) for at in (2 * i, 2 * i + 1)]
        out += y.shape[1]
    assert max(waits) == encoder.latency == (chunk + lookahead) * 2 - 1


@pytest.mark.parametrize("direction", ["causal", "inner", "outer"])
def test_a_frame_sees_what_has_come_and_its_lookahead(direction: str) -> None:
    """Which outputs change with one input: exactly those that may."""
    options = {} if direction == "causal" else {"chunk": 3, "lookahead": 2}
    encoder = small(direction=direction, n_layers=1, conv_kernel=3, **options)
    x = torch.randn(1, 30, 5, dtype=torch.float64)
    y, _ = encoder(x)
    for at in (0, 5, 13, 18, 29):
        other = x.clone()
        other[:, at] += 1
        changed = (encoder(other)[0] != y).any(-1)[0]
        frame = at // 2
        # Of a chunk that begins at c, frames c .. c + 2 see those up to c + 4.
        first = frame if direction == "causal" else max(0, 3 * -(-(frame - 4) // 3))
        assert not changed[:first].any(), at
        assert changed[first:].all(), at


def test_one_chunk_is_the_whole_and_a_call_may_choose() -> None:
    encoder = small(chunk=3, lookahead=1)
    x = torch.randn(2, 20, 5, dtype=torch.float64)
    whole, _ = small()(x)
    torch.testing.assert_close(encoder(x, chunk=0)[0], whole)
    torch.testing.assert_close(encoder(x, chunk=10)[0], whole)
    torch.testing.assert_close(small()(x, chunk=3, lookahead=1)[0], encoder(x)[0])
    assert not torch.allclose(encoder(x)[0], whole)
    with pytest.raises(ValueError, match="lookahead is 2 without a chunk"):
        encoder(x, chunk=0, lookahead=2)
    with pytest.raises(ValueError, match="chunk is -1"):
        encoder(x, chunk=-1)
    with pytest.raises(ValueError, match="a causal encoder streams without chunks"):
        small(direction="causal")(x, chunk=2)


def test_windows() -> None:
    assert windows(0, 0, 0) == windows(0, 3, 2) == []
    assert windows(7, 0, 0) == windows(7, 7, 0) == [(0, 7, 7)]
    assert windows(7, 3, 2) == [(0, 3, 5), (3, 6, 7), (6, 7, 7)]
    assert windows(7, 3, 2, final=False) == [(0, 3, 5)]
    assert windows(8, 3, 2, final=False) == [(0, 3, 5), (3, 6, 8)]
    assert windows(4, 3, 2, final=False) == []


def test_a_state_of_another_batch_is_refused() -> None:
    encoder = small(direction="causal")
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    _, state = encoder.stream(x[:2])
    with pytest.raises(ValueError, match="the state is of 2 streams and the features of 3"):
        encoder.stream(x, state)


def test_a_bidirectional_encoder_without_chunks_does_not_stream() -> None:
    encoder = small()
    assert encoder.latency is None
    with pytest.raises(ValueError, match="chunk is 0 and direction 'inner'"):
        encoder.stream(torch.randn(1, 4, 5).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{"direction": "causal"}, {"chunk": 3, "lookahead": 1}])
def test_states_keep_their_dtype_and_are_values(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    encoder = small(**options, complex=True).float()
    if dtype == torch.bfloat16:  # the weights are; or they are not and autocast is on
        encoder = encoder.bfloat16()
    state = encoder.initial_state(2)
    for autocast in (False, dtype == torch.float32):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            _, state = encoder.stream(torch.randn(2, 9, 5, dtype=dtype), state)
            before = [leaf.clone() for leaf in leaves(state)]
            y, after = encoder.stream(torch.randn(2, 7, 5, dtype=dtype), state)
        assert y.dtype == dtype
        for old, copy, new, first in zip(
            leaves(state), before, leaves(after), leaves(encoder.initial_state(2)), strict=True
        ):
            assert torch.equal(old, copy)
            assert old.dtype == new.dtype == first.dtype
        state = after


def test_a_row_of_a_state_is_the_stream_of_that_row() -> None:
    encoder = small(chunk=3, lookahead=1)
    x = torch.randn(3, 30, 5, dtype=torch.float64)
    _, state = encoder.stream(x[:, :17])
    row: EncoderState = map_state(lambda leaf: leaf[1:2], state)
    torch.testing.assert_close(
        encoder.stream(x[1:2, 17:], row)[0], encoder.stream(x[:, 17:], state)[0][1:2]
    )


class Step(torch.nn.Module):
    """A piece of fixed length with the state in and out, as a device would run it."""

    def __init__(self, encoder: MambaEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.encoder.stream(x, state)


@pytest.mark.parametrize("mixer", ["s6", "lti"])
def test_the_causal_step_exports(mixer: str) -> None:
    encoder = small(direction="causal", mixer=mixer, subsampling=4, n_layers=1).float()
    x, state, ys = torch.randn(1, 12, 5), encoder.initial_state(1), []
    step = torch.export.export(Step(encoder), (x[:, :4], state)).module()
    for at in (0, 4, 8):
        y, state = step(x[:, at : at + 4], state)
        ys.append(y)
    torch.testing.assert_close(torch.cat(ys, dim=1), encoder(x)[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporter's
@pytest.mark.parametrize("mixer", ["s6", "lti"])
def test_the_causal_step_runs_in_onnx(mixer: str, tmp_path: Path) -> None:
    """The plain loop of real mixers is of operations that ONNX has; it has no complex numbers."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    config = dataclasses.replace(SMALL, direction="causal", mixer=mixer, subsampling=4)
    encoder = MambaEncoder(config, backend="reference").eval()
    x, state, ys = torch.randn(1, 12, 5), encoder.initial_state(1), []
    program = torch.onnx.export(Step(encoder), (x[:, :4], state), dynamo=True, verbose=False)
    assert program is not None
    program.save(tmp_path / "step.onnx")
    session = runtime.InferenceSession(str(tmp_path / "step.onnx"))
    names = [value.name for value in session.get_inputs()]
    carried = [leaf.numpy() for leaf in leaves(state)]
    for at in (0, 4, 8):
        given = [x[:, at : at + 4].numpy(), *carried]
        y, *carried = session.run(None, dict(zip(names, given, strict=True)))
        ys.append(torch.from_numpy(y))
    torch.testing.assert_close(torch.cat(ys, dim=1), encoder(x)[0])
