"""The encoder: an utterance comes out of a padded batch as if it were alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import audiomamba
from audiomamba import EncoderConfig, MambaEncoder, checkpoint
from audiomamba.config import Tier, unet
from audiomamba.layers.bidirectional import InnerBidirectional, OuterBidirectional
from audiomamba.layers.convolution import ConvModule
from audiomamba.layers.encoder_layer import EncoderLayer
from audiomamba.models.waveform import WaveformModel
from audiomamba_kernels.ragged import valid
from tests.covering import covering

SMALL = EncoderConfig(
    d_input=5, d_model=6, n_layers=2, d_state=4, subsampling=2, feed_forward=2, conv_kernel=5
)
LENGTHS = torch.tensor([23, 1, 0, 11, 3, 8])
KINDS = {
    "direction": ("causal", "inner", "outer"),
    "mixer": ("s6", "lti"),
    "complex": (False, True),
}
AXES = {
    **KINDS,
    "subsampling": (1, 2, 4),
    "feed_forward": (0, 2),
    "conv_kernel": (0, 1, 5),
    "d_conv": (2, 4),
    "expand": (1, 2),
    "d_input": (1, 5),
    "windows": ((0, 0), (3, 0), (2, 3)),
}
CASES = covering(AXES)
EITHER = [("causal", "lti"), ("inner", "s6"), ("outer", "lti")]  # each costs seconds


def small(**options: Any) -> MambaEncoder:
    torch.manual_seed(0)
    return MambaEncoder(dataclasses.replace(SMALL, **options)).eval()


def build(windows: tuple[int, int] = (0, 0), **options: Any) -> MambaEncoder:
    chunk, lookahead = (0, 0) if options["direction"] == "causal" else windows
    return small(chunk=chunk, lookahead=lookahead, **options).double()


def evil(x: Tensor, lengths: Tensor) -> Tensor:
    """Fill the padding with NaN and with what is huge, in turns."""
    bad = torch.full_like(x, torch.nan)
    bad[:, ::2] = 1e30
    return torch.where(valid(lengths, x.shape[1])[..., None], x, bad)


def gradients(encoder: MambaEncoder, y: Tensor, dy: Tensor, x: Tensor) -> list[Tensor]:
    wanted = [x, *encoder.parameters()]
    found = torch.autograd.grad(y, wanted, dy, allow_unused=True)
    return [torch.zeros_like(a) if g is None else g for a, g in zip(wanted, found, strict=True)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_row_of_a_padded_batch_is_as_if_alone(case: dict[str, Any]) -> None:
    """Forward, and the gradients of the input and of every parameter."""
    encoder = build(**case)
    x = torch.randn(len(LENGTHS), 23, case["d_input"], dtype=torch.float64)
    batch = evil(x, LENGTHS).requires_grad_()
    y, lengths = encoder(batch, LENGTHS)
    assert lengths.dtype == torch.int64
    assert lengths.tolist() == [n // case["subsampling"] for n in LENGTHS.tolist()]
    assert y.shape == (6, 23 // case["subsampling"], 6)
    assert torch.equal(y != 0, (valid(lengths, y.shape[1])[..., None] & (y != 0)))
    dy = evil(torch.randn_like(y), lengths)
    got = gradients(encoder, y, dy, batch)
    expected = [torch.zeros_like(p) for p in encoder.parameters()]
    for i, n in enumerate(LENGTHS.tolist()):
        row = x[i : i + 1, :n].clone().requires_grad_()
        alone, count = encoder(row)
        assert count.tolist() == lengths[i : i + 1].tolist()
        torch.testing.assert_close(y[i : i + 1, : alone.shape[1]], alone, rtol=1e-9, atol=1e-9)
        if alone.requires_grad:
            of_row = gradients(encoder, alone, dy[i : i + 1, : alone.shape[1]], row)
            torch.testing.assert_close(got[0][i : i + 1, :n], of_row[0], rtol=1e-8, atol=1e-9)
            expected = [a + b for a, b in zip(expected, of_row[1:], strict=True)]
    assert (got[0][~valid(LENGTHS, 23)] == 0).all()
    for (name, _), a, b in zip(encoder.named_parameters(), got[1:], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
        assert a.abs().sum() > 0, name


@pytest.mark.parametrize("direction", ["causal", "inner", "outer"])
def test_the_order_of_a_batch_does_not_matter(direction: str) -> None:
    encoder = small(direction=direction).double()
    x, order = torch.randn(6, 23, 5, dtype=torch.float64), torch.tensor([3, 5, 0, 2, 1, 4])
    y, lengths = encoder(x, LENGTHS)
    z, permuted = encoder(x[order], LENGTHS[order])
    torch.testing.assert_close(z, y[order], rtol=1e-12, atol=1e-12)
    assert torch.equal(permuted, lengths[order])


def test_no_lengths_are_all_frames() -> None:
    encoder = small()
    x = torch.randn(2, 9, 5)
    y, lengths = encoder(x)
    same, _ = encoder(x, torch.tensor([9, 9], dtype=torch.int32))
    torch.testing.assert_close(y, same)
    assert lengths.tolist() == [4, 4]
    assert torch.equal(lengths, encoder.output_lengths(torch.tensor([9, 9])))


@pytest.mark.parametrize("subsampling", [1, 2, 4])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_what_is_too_short_for_a_frame_has_none(subsampling: int, steps: int) -> None:
    encoder = small(subsampling=subsampling)
    for lengths in (None, torch.tensor([steps, 0])):
        y, counts = encoder(torch.randn(2, steps, 5), lengths)
        assert y.shape == (2, steps // subsampling, 6)
        assert counts.tolist() == [steps // subsampling, 0 if lengths is not None else counts[0]]
        hidden, _ = encoder.extract_features(torch.randn(2, steps, 5), lengths)
        assert [h.shape for h in hidden] == [y.shape] * 2


@pytest.mark.parametrize(
    ("features", "lengths", "message"),
    [
        (torch.zeros(2, 4, 5), torch.tensor([5, 1]), "lengths holds 5; each must be 0 to 4"),
        (torch.zeros(2, 4, 5), torch.tensor([-1, 1]), "lengths holds -1"),
        (torch.zeros(2, 4, 5), torch.tensor([1.0, 0.5]), "must be integers"),
        (torch.zeros(2, 4, 5), torch.tensor([4]), r"must be \(2,\)"),
        (torch.zeros(2, 4, 3), None, r"\(batch, time, d_input = 5\)"),
        (torch.zeros(2, 4, 5, dtype=torch.long), None, "must be floating point"),
        (torch.zeros(2, 4, 5).double(), None, r"encoder is torch\.float32; convert them, feat"),
    ],
)
def test_wrong_inputs_are_refused(features: Tensor, lengths: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small()(features, lengths)


def test_lengths_are_a_tensor() -> None:
    for lengths in ([4, 1], (4, 1), np.array([4, 1])):
        with pytest.raises(TypeError, match=r"lengths is of type .*; it must be a tensor of integ"):
            small()(torch.zeros(2, 4, 5), lengths)


@pytest.mark.parametrize("case", covering({**KINDS, "how": ("module", "autocast")}), ids=str)
def test_bfloat16_in_a_padded_batch(case: dict[str, Any]) -> None:
    how, complex = case["how"], case["complex"]
    encoder = small(**{name: case[name] for name in KINDS}).bfloat16()
    dtype = torch.bfloat16 if how == "module" else torch.float32
    x = torch.randn(6, 23, 5).bfloat16()
    exact, _ = encoder.float()(x.float(), LENGTHS)
    encoder.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        y, _ = encoder(evil(x.to(dtype), LENGTHS), LENGTHS)
        alone, _ = encoder(x[3:4, :11].to(dtype))
    assert y.dtype == dtype
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    state = encoder.initial_state(1).layers[0].mixer.ssm
    assert state.dtype == (torch.complex64 if complex else torch.float32)
    # Some ten roundings in sequence, of a residual stream too if the module is bfloat16.
    allowed = (16 if how == "module" else 8) * torch.finfo(torch.bfloat16).eps
    assert (y - exact).norm() < allowed * exact.norm()
    assert (alone - exact[3:4, :5]).norm() < allowed * exact[3:4, :5].norm()


def test_features_of_every_layer() -> None:
    encoder = small()
    x = torch.randn(6, 23, 5)
    hidden, lengths = encoder.extract_features(evil(x, LENGTHS), LENGTHS)
    y, same = encoder(x, LENGTHS)
    assert torch.equal(lengths, same)
    torch.testing.assert_close(encoder.norm(hidden[-1]), y)
    (first,), _ = encoder.extract_features(x, LENGTHS, num_layers=1)
    torch.testing.assert_close(first, hidden[0])
    assert (first[2] == 0).all()
    states, same = encoder.hidden_states(evil(x, LENGTHS), LENGTHS)
    assert torch.equal(lengths, same)
    frames, _ = encoder.subsampling(x[:1])
    torch.testing.assert_close(states[0][:1], frames)
    torch.testing.assert_close(states[1:], [*hidden[:-1], y])
    assert (states[0][2] == 0).all()
    with pytest.raises(ValueError, match="num_layers is 3; it must be 1 to 2"):
        encoder.extract_features(x, LENGTHS, num_layers=3)


@pytest.mark.parametrize("selective", [True, False])
def test_both_directions_are_two_blocks_and_flips(selective: bool) -> None:
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    inner = InnerBidirectional(6, d_state=4, selective=selective).double()
    u, z = inner.forwards.project(x)
    ahead, _ = inner.forwards.recur(u, z)
    back = inner.backwards.recur(u.flip(1), z.flip(1))[0].flip(1)
    torch.testing.assert_close(inner(x)[0], inner.forwards.out_proj((ahead + back) / 2))
    assert {name.split(".")[0] for name, _ in inner.backwards.named_parameters()}.isdisjoint(
        {"in_proj", "out_proj"}
    )
    outer = OuterBidirectional(6, d_state=4, selective=selective).double()
    both = torch.cat([outer.forwards(x)[0], outer.backwards(x.flip(1))[0].flip(1)], dim=-1)
    torch.testing.assert_close(outer(x)[0], outer.out_proj(both))


def test_the_macaron_layer_written_out() -> None:
    """ConMamba's layer, with PyTorch's own convolution."""
    layer = EncoderLayer(dataclasses.replace(SMALL, dropout=0.0), 0.0).double()
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    conv: ConvModule = layer.conv  # type: ignore[assignment]
    h = x + layer.first.down(F.silu(layer.first.up(layer.first.norm(x)))) / 2
    h = h + layer.mixer(layer.norm(h))[0]
    a, b = conv.in_proj(conv.norm(h)).chunk(2, -1)
    same = F.conv1d((a * b.sigmoid()).mT, conv.depthwise.weight, conv.depthwise.bias, 1, 2, 1, 6)
    h = h + conv.out_proj(F.silu(conv.depthwise_norm(same.mT)))
    h = h + layer.second.down(F.silu(layer.second.up(layer.second.norm(h)))) / 2
    assert isinstance(layer.out_norm, nn.RMSNorm)
    torch.testing.assert_close(layer(x)[0], layer.out_norm(h))


def test_stochastic_depth_skips_whole_utterances_in_training_only() -> None:
    config = dataclasses.replace(SMALL, dropout=0.0, feed_forward=0, conv_kernel=0)
    layer = EncoderLayer(config, skip=0.5).double()
    x = torch.randn(32, 9, 6, dtype=torch.float64)
    added = layer(x)[0] - x
    layer.eval()
    whole = layer(x)[0] - x
    kept = (added != 0).flatten(1).any(1)
    assert 4 < kept.sum() < 28
    torch.testing.assert_close(added[kept], 2 * whole[kept])
    skips = [block.skip for block in small(stochastic_depth=0.3).layers]
    assert skips == pytest.approx([0.15, 0.3])


def test_dropout_is_off_in_evaluation() -> None:
    encoder = small(dropout=0.5, stochastic_depth=0.5)
    x = torch.randn(1, 9, 5)
    assert torch.equal(encoder(x)[0], encoder(x)[0])
    encoder.train()
    assert not torch.equal(encoder(x)[0], encoder(x)[0])


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # the compiler's
@pytest.mark.parametrize(("direction", "mixer"), EITHER)
def test_it_compiles_to_one_graph(direction: str, mixer: str) -> None:
    encoder = small(direction=direction, mixer=mixer, complex=mixer == "lti", n_layers=1)
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    x = torch.randn(6, 23, 5)
    y, lengths = compiled(evil(x, LENGTHS), LENGTHS)
    torch.testing.assert_close(y, encoder(x, LENGTHS)[0])
    assert torch.equal(lengths, LENGTHS // 2)
    y.square().sum().backward()
    got = [p.grad.clone() for p in encoder.parameters() if p.grad is not None]
    encoder.zero_grad()
    encoder(x, LENGTHS)[0].square().sum().backward()
    for a, p in zip(got, encoder.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-4, atol=1e-4)
    torch.compiler.reset()


@pytest.mark.parametrize(("direction", "mixer"), EITHER)
def test_it_exports_with_any_batch_and_time(direction: str, mixer: str) -> None:
    """Any from 65 frames after subsampling on, to which what is shorter is padded."""
    encoder = small(direction=direction, mixer=mixer, complex=mixer == "s6", n_layers=1)
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time", min=130)
    program = torch.export.export(
        encoder,
        (torch.randn(2, 300, 5), torch.tensor([300, 7])),
        dynamic_shapes=({0: batch, 1: time}, {0: batch}),
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    exported = program.module()
    for steps in (130, 171, 402):
        x, lengths = torch.randn(3, steps, 5), torch.tensor([steps, 0, 70])
        y, counts = exported(evil(x, lengths), lengths)
        torch.testing.assert_close(y, encoder(x, lengths)[0])
        assert torch.equal(counts, lengths // 2)
    for steps in (1, 8, 129):
        x, lengths = torch.randn(3, steps, 5), torch.tensor([steps, 0, steps // 2])
        with pytest.raises(AssertionError, match=r"Guard failed: .* >= 130"):
            exported(x, lengths)
        y, counts = exported(evil(F.pad(x, (0, 0, 0, 130 - steps)), lengths), lengths)
        torch.testing.assert_close(y[:, : steps // 2], encoder(x, lengths)[0])
        assert not y[:, steps // 2 :].any()
        assert torch.equal(counts, lengths // 2)


def test_a_saved_encoder_loads_equal(tmp_path: Path) -> None:
    encoder = small(direction="outer", complex=True, chunk=3)
    encoder.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = MambaEncoder.from_pretrained(tmp_path)
    assert not loaded.training
    assert loaded.config == encoder.config
    x = torch.randn(2, 9, 5)
    assert torch.equal(loaded(x)[0], encoder(x)[0])


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match="encoder is no model of waveforms, but an encoder"):
        audiomamba.load(tmp_path / "encoder")
    config = unet(8, 1, (2,), Tier(d_state=4), Tier(d_state=4))
    checkpoint.save(tmp_path / "model", config, WaveformModel(config).state_dict())
    with pytest.raises(ValueError, match="model is no encoder, but a model of waveforms"):
        MambaEncoder.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"direction": "both"}, "direction is 'both'; choose one of causal, inner, outer"),
        ({"mixer": "s4"}, "mixer is 's4'; choose one of s6, lti"),
        ({"subsampling": 3}, "subsampling is 3; choose one of 1, 2, 4"),
        ({"subsampling": 4.0}, "subsampling is 4.0; it must be a whole number"),
        ({"n_layers": 0}, "n_layers is 0; it must be at least 1"),
        ({"d_state": 16.5}, "d_state is 16.5; it must be a whole number"),
        ({"conv_kernel": 31.0}, "conv_kernel is 31.0; it must be a whole number"),
        ({"d_model": "8"}, "d_model is '8'; it must be a whole number"),
        ({"n_layers": True}, "n_layers is True; it must be a whole number"),
        ({"feed_forward": -1}, "feed_forward is -1; it must be 0"),
        ({"dropout": 1}, "dropout is 1; it must be a number from 0 to below 1"),
        ({"stochastic_depth": "0.1"}, "stochastic_depth is '0.1'"),
        ({"complex": True, "d_state": 3}, "d_state is 3; a complex state needs an even number"),
        ({"conv_kernel": 4}, "conv_kernel is 4; it must be odd"),
        ({"lookahead": 4}, "lookahead is 4 without a chunk"),
        ({"chunk": 4, "direction": "causal"}, "a causal encoder streams without chunks"),
    ],
)
def test_a_wrong_config_says_what_to_do(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderConfig(**values)


def test_a_config_survives_json() -> None:
    config = EncoderConfig(direction="outer", chunk=8, lookahead=2, dropout=0.2)
    assert EncoderConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="encoder has the unknown key 'width'"):
        EncoderConfig.from_dict({**config.to_dict(), "width": 3})
    with pytest.raises(ValueError, match=r"encoder.d_model is 8.0; it must be of type int"):
        EncoderConfig.from_dict({**config.to_dict(), "d_model": 8.0})
