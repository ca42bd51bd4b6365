from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from audiomamba.tokenizer import Encoding, Tokenizer

ENCODINGS = get_args(Encoding)
BITS = range(1, 17)
tokenizers = st.builds(Tokenizer, st.sampled_from(["mu-law", "linear"]), st.integers(1, 16))
waveforms = hnp.arrays(
    np.float32, hnp.array_shapes(max_dims=3, max_side=7), elements=st.floats(-1, 1, width=32)
)
pcm16 = (np.arange(-32768, 32768) / 32768).astype(np.float32)
quick = settings(max_examples=50, deadline=None)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mu_law_equals_torchaudio_bit_for_bit(bits: int, dtype: torch.dtype) -> None:
    functional = pytest.importorskip("torchaudio.functional", exc_type=ImportError)
    edges = [0.0, -0.0, 1e-9, -1e-9, 1.0, -1.0]
    waveform = np.concatenate([pcm16, noise(100_003), edges])
    x = torch.from_numpy(waveform).to(dtype)
    expected = functional.mu_law_encoding(x, 1 << bits)
    assert torch.equal(Tokenizer(bits=bits).encode(x), expected)


@pytest.mark.parametrize("bits", BITS)
def test_mu_law_decodes_as_torchaudio(bits: int) -> None:
    functional = pytest.importorskip("torchaudio.functional", exc_type=ImportError)
    tokens = torch.arange(1 << bits)
    expected = functional.mu_law_decoding(tokens, 1 << bits)
    # torchaudio computes exp(...) - 1 in float32, which is off by an ulp of its largest value.
    torch.testing.assert_close(Tokenizer(bits=bits).decode(tokens), expected, rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("bits", range(1, 11))
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_numpy_equals_torch_on_16_bit_audio(encoding: Encoding, bits: int) -> None:
    tokenizer = Tokenizer(encoding, bits)
    tokens = tokenizer.encode(pcm16)
    assert tokens.dtype == (np.uint8 if bits <= 8 else np.uint16)
    assert np.array_equal(tokens, tokenizer.encode(torch.from_numpy(pcm16)).numpy())


@pytest.mark.parametrize("bits", range(11, 17))
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_numpy_and_torch_differ_by_a_level_in_one_of_ten_thousand(
    encoding: Encoding, bits: int
) -> None:
    tokenizer = Tokenizer(encoding, bits)
    x = noise(100_003)
    mine = tokenizer.encode(x).astype(np.int64)
    difference = np.abs(mine - tokenizer.encode(torch.from_numpy(x)).numpy())
    assert difference.max() <= 1
    assert difference.mean() < 1e-4


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_numpy_and_torch_decode_alike(encoding: Encoding) -> None:
    tokenizer = Tokenizer(encoding, 11)
    tokens = np.arange(2048, dtype=np.uint16).reshape(2, 2, 512)
    decoded = tokenizer.decode(tokens)
    assert decoded.dtype == np.float32
    as_tensor = tokenizer.decode(torch.from_numpy(tokens.astype(np.int16)))
    assert as_tensor.dtype == torch.float32
    assert np.array_equal(decoded, as_tensor.numpy())


def test_known_values() -> None:
    x = np.array([-1, -0.5, -1e-9, 0.0, 1e-9, 0.5, 1], dtype=np.float32)
    assert Tokenizer().encode(x).tolist() == [0, 16, 127, 128, 128, 239, 255]
    assert Tokenizer("linear").encode(x).tolist() == [0, 64, 128, 128, 128, 191, 255]
    decoded = Tokenizer().decode(np.array([0, 127, 128, 255]))
    assert decoded.tolist() == pytest.approx([-1, -8.62e-5, 8.62e-5, 1], abs=1e-7)


def test_sashimi_is_the_published_formula() -> None:
    clip = 0.1 * noise(3, 4001) + 0.2
    x = torch.from_numpy(clip)
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    scaled = -1 + 2 * (x - low) / (high - low + 1e-6)
    mu = torch.tensor(255)
    magnitude = torch.log1p(mu * torch.abs(scaled + 1e-8)) / torch.log1p(mu)
    expected = ((torch.sign(scaled) * magnitude + 1) / 2 * (256 - 0.01) + 0.005).long()
    tokens = Tokenizer("mu-law-sashimi").encode(x)
    assert torch.equal(tokens, expected)
    assert tokens.amin() == 0
    assert tokens.amax() == 255


def test_sashimi_rescales_each_clip_and_keeps_a_constant_clip_at_the_bottom() -> None:
    tokenizer = Tokenizer("mu-law-sashimi")
    clips = np.stack([noise(99), 0.1 * noise(99), np.zeros(99, np.float32)])
    tokens = tokenizer.encode(clips)
    assert np.abs(tokens[0].astype(int) - tokens[1]).max() <= 1
    assert tokens[2].max() == 0
    peaks = np.array([-0.1, -0.05, 0.05, 0.1], dtype=np.float32)
    assert tokenizer.encode(peaks).tolist() == pytest.approx([0, 16, 239, 255], abs=1)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_level_decodes_into_its_own_bin(encoding: Encoding, bits: int) -> None:
    tokenizer = Tokenizer(encoding, bits)
    tokens = np.arange(tokenizer.levels).astype(tokenizer.dtype)
    waveform = tokenizer.decode(tokens)
    assert np.all(np.diff(waveform) > 0)
    assert -1 <= waveform[0] < waveform[-1] <= 1
    if encoding != "mu-law-sashimi":  # which rescales what it is given
        assert np.array_equal(tokenizer.encode(waveform), tokens)


@pytest.mark.parametrize("bits", [2, 8, 13])
def test_decoding_to_the_middle_leaves_no_bias(bits: int) -> None:
    x = np.linspace(-1, 1, 200_001, dtype=np.float32)
    for encoding in ENCODINGS:
        tokenizer = Tokenizer(encoding, bits)
        error = tokenizer.decode(tokenizer.encode(x)).astype(np.float64) - x
        assert abs(error.mean()) < 1e-3 * 2.0 ** (8 - bits)


@given(tokenizers, waveforms)
@quick
def test_round_trip_stays_within_half_a_bin(tokenizer: Tokenizer, x: np.ndarray) -> None:
    error = np.abs(tokenizer.decode(tokenizer.encode(x)) - x)
    mu = tokenizer.levels - 1
    if tokenizer.encoding == "linear":
        bound = np.full_like(x, 1 / mu)
    else:  # half a bin of the companded axis, expanded
        bound = (np.abs(x) + 1 / mu) * np.expm1(np.log1p(mu) / mu)
    assert np.all(error <= bound * 1.001 + 1e-6)


@given(tokenizers, waveforms)
@quick
def test_encoding_again_changes_nothing(tokenizer: Tokenizer, x: np.ndarray) -> None:
    tokens = tokenizer.encode(x)
    assert np.array_equal(tokenizer.encode(tokenizer.decode(tokens)), tokens)


@given(tokenizers, waveforms)
@quick
def test_encoding_is_monotone(tokenizer: Tokenizer, x: np.ndarray) -> None:
    tokens = tokenizer.encode(np.sort(x, axis=None))
    assert np.all(tokens[1:] >= tokens[:-1])


@given(st.sampled_from(ENCODINGS), waveforms, st.booleans())
@quick
def test_a_batch_equals_its_clips(encoding: Encoding, x: np.ndarray, tensor: bool) -> None:
    tokenizer = Tokenizer(encoding)
    batch: Any = torch.from_numpy(x) if tensor else x
    tokens = tokenizer.encode(batch)
    assert tokens.shape == x.shape
    clips, rows = batch.reshape(-1, x.shape[-1]), tokens.reshape(-1, x.shape[-1])
    for clip, expected in zip(clips, rows, strict=True):
        assert tokenizer.encode(clip).tolist() == expected.tolist()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("encoding", ["mu-law", "linear"])
def test_silence_is_the_level_of_zero(encoding: Encoding, bits: int) -> None:
    tokenizer = Tokenizer(encoding, bits)
    assert tokenizer.encode(np.zeros(1)).item() == tokenizer.silence
    assert tokenizer.encode(torch.zeros(1)).item() == tokenizer.silence


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
def test_an_empty_array_stays_empty(encoding: Encoding, shape: tuple[int, ...]) -> None:
    tokenizer = Tokenizer(encoding)
    assert tokenizer.encode(np.zeros(shape)).shape == shape
    assert tokenizer.encode(torch.zeros(shape)).shape == shape
    assert tokenizer.decode(np.zeros(shape, np.uint8)).shape == shape


def test_half_precision_is_computed_in_float32() -> None:
    x = torch.from_numpy(noise(1001)).bfloat16()
    assert torch.equal(Tokenizer().encode(x), Tokenizer().encode(x.float()))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.0001, -3.0])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_sample_that_is_no_audio_is_refused(encoding: Encoding, value: float) -> None:
    x = np.zeros((2, 5), np.float32)
    x[1, 3] = value
    with pytest.raises(ValueError, match=rf"a sample is {value:.6g}; .* finite"):
        Tokenizer(encoding).encode(x)
    with pytest.raises(ValueError, match=rf"a sample is {value:.6g}; .* finite"):
        Tokenizer(encoding).encode(torch.from_numpy(x))


@pytest.mark.parametrize("waveform", [np.zeros(3, np.int16), torch.zeros(3, dtype=torch.int16)])
def test_an_integer_waveform_is_refused(waveform: Any) -> None:
    with pytest.raises(ValueError, match=r"waveform is .*int16; it must be floating point"):
        Tokenizer().encode(waveform)


@pytest.mark.parametrize("token", [-1, 256])
def test_a_token_out_of_range_is_refused(token: int) -> None:
    message = f"a token is {token}; 8 bits have levels 0 to 255"
    with pytest.raises(ValueError, match=message):
        Tokenizer().decode(np.array([3, token]))
    with pytest.raises(ValueError, match=message):
        Tokenizer().decode(torch.tensor([3, token]))


@pytest.mark.parametrize(
    "tokens", [np.zeros(3), np.zeros(3, bool), torch.zeros(3), torch.zeros(3, dtype=torch.bool)]
)
def test_tokens_that_are_not_integers_are_refused(tokens: Any) -> None:
    with pytest.raises(ValueError, match="levels are integers"):
        Tokenizer().decode(tokens)


def test_a_list_is_refused() -> None:
    with pytest.raises(ValueError, match="list is neither"):
        Tokenizer().encode([0.0])  # type: ignore[type-var]


@pytest.mark.parametrize("bits", [0, 17, 8.0, "8"])
def test_bits_out_of_range_are_refused(bits: Any) -> None:
    with pytest.raises(ValueError, match=f"bits is {bits!r}"):
        Tokenizer(bits=bits)


def test_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(ValueError, match=r"encoding is 'a-law'; choose one of mu-law, "):
        Tokenizer("a-law")  # type: ignore[arg-type]


@pytest.mark.gpu
def test_a_tensor_keeps_its_device() -> None:
    x = torch.from_numpy(pcm16).cuda()
    tokens = Tokenizer().encode(x)
    assert tokens.device == x.device
    assert Tokenizer().decode(tokens).device == x.device
    assert (tokens.cpu() - Tokenizer().encode(x.cpu())).abs().max() <= 1
