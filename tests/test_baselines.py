import itertools
import math

import numpy as np
import pytest

from audiomamba.baselines import (
    context_bits,
    cross_entropy,
    linear_prediction_bits,
    order0_bits,
    order2_bits,
    table,
)
from audiomamba.data.tokens import INDEX, TOKENS, TokenFile, TokenStore, write_index
from audiomamba.tokenizer import Tokenizer


def store_of(directory, clips, tokenizer):
    """Return a store of (split, tokens) pairs."""
    files, offset = [], 0
    for i, (split, clip) in enumerate(clips):
        names = {"path": f"{split}/{i}.wav", "split": split, "peak": 1.0, "sha256": ""}
        files.append(TokenFile(offset=offset, samples=len(clip), **names))
        offset += len(clip)
    data = b"".join(clip.astype(tokenizer.dtype).tobytes() for _, clip in clips)
    (directory / TOKENS).write_bytes(data)
    about = {"tokenizer": tokenizer, "sample_rate": 16000, "split_rule": "", "skipped": {}}
    write_index(directory / INDEX, files, **about)
    return TokenStore(directory)


def noise(directory, lengths, bits, seed=0):
    random = np.random.default_rng(seed)
    clips = [(split, random.integers(1 << bits, size=n)) for split, n in lengths]
    return store_of(directory, clips, Tokenizer(bits=bits))


def test_order0_is_the_smoothed_histogram(tmp_path):
    store = noise(tmp_path, [("train", 50), ("train", 7), ("test", 20), ("test", 3)], bits=3)
    seen = np.concatenate([store.clip(f) for f in store.files("train")])
    heard = np.concatenate([store.clip(f) for f in store.files("test")])
    p = [(np.sum(seen == x) + 1) / (57 + 8) for x in range(8)]
    assert order0_bits(store) == pytest.approx(-np.mean([math.log2(p[x]) for x in heard]))


def test_order2_is_the_formula_of_the_docstring(tmp_path):
    lengths = [("train", 60), ("train", 9), ("validation", 17), ("test", 20), ("test", 1)]
    store = noise(tmp_path, lengths, bits=2)

    def grams(split):
        for file in store.files(split):
            past = [2, 2]  # silence
            for x in store.clip(file).tolist():
                yield past[-2], past[-1], x
                past.append(x)

    seen = list(grams("train"))

    def p2(a, b, x, k):
        p0 = (sum(g[2] == x for g in seen) + 1) / (len(seen) + 4)
        n1 = [g for g in seen if g[1] == b]
        p1 = (sum(g[2] == x for g in n1) + k * p0) / (len(n1) + k)
        n2 = [g for g in n1 if g[0] == a]
        return (sum(g[2] == x for g in n2) + k * p1) / (len(n2) + k)

    def bits(split, k):
        return -np.mean([math.log2(p2(*gram, k)) for gram in grams(split)])

    k = min((1, 4, 16, 64, 256), key=lambda k: bits("validation", k))
    assert order2_bits(store) == pytest.approx(bits("test", k))


def test_distributions_sum_to_one(tmp_path):
    """Of p2 given any context: what it gives to all sequences of two samples sums to one."""
    store = noise(tmp_path, [("train", 40), ("test", 5)], bits=1)

    def contexts(tokens):
        return np.concatenate([[1], tokens[:-1]]) + 2

    total = 0.0
    for i, pair in enumerate(itertools.product((0, 1), repeat=2)):
        (tmp_path / str(i)).mkdir()
        clips = [("train", np.array(store.clip(store.files("train")[0]))), ("test", np.array(pair))]
        one = store_of(tmp_path / str(i), clips, store.tokenizer)
        total += 2 ** (-2 * context_bits(one, "test", contexts, 4))
    assert total == pytest.approx(1)


def test_a_linear_predictor_knows_a_tone_from_noise(tmp_path):
    tokenizer = Tokenizer()
    t = np.arange(20000)
    random = np.random.default_rng(0)

    def tone(phase):
        return tokenizer.encode(0.5 * np.sin(0.05 * t + phase))

    clips = [("train", tone(0.1)), ("train", tone(2.0)), ("validation", tone(3)), ("test", tone(1))]
    (tmp_path / "tone").mkdir()
    store = store_of(tmp_path / "tone", clips, tokenizer)
    assert linear_prediction_bits(store) < 0.6 * order0_bits(store)
    store = store_of(
        tmp_path,
        [(split, random.integers(256, size=30000)) for split in ("train", "validation", "test")],
        tokenizer,
    )
    # Nothing can be known of white noise; counting costs what the smoothing lets through.
    assert 8 <= linear_prediction_bits(store) < 8.4


def test_silence_and_short_clips_are_scored(tmp_path):
    silent = np.full(100, 128)
    store = store_of(
        tmp_path, [("train", silent), ("train", silent[:1]), ("test", silent[:2])], Tokenizer()
    )
    for bits in (order0_bits(store), order2_bits(store), linear_prediction_bits(store)):
        assert 0 < bits < 2


def test_missing_splits_and_wide_tokens_are_refused(tmp_path):
    (tmp_path / "wide").mkdir()
    store = noise(tmp_path / "wide", [("train", 30), ("test", 30)], bits=9)
    assert order0_bits(store) > 8
    with pytest.raises(ValueError, match="9 bits are too many to count"):
        order2_bits(store)
    store = noise(tmp_path, [("train", 30)], bits=4)
    with pytest.raises(ValueError, match="has no test files"):
        order0_bits(store)


def test_a_table_counts_every_sample_once(tmp_path):
    store = noise(tmp_path, [("train", 31), ("train", 500)], bits=2)
    counts = table(store, "train", lambda tokens: tokens.astype(np.int64) % 2, 3)
    assert counts.shape == (3, 4)
    assert counts.sum() == 531
    assert not counts[2].any()
    assert not counts[0, 1::2].any()
    assert cross_entropy(counts, np.full((3, 4), 0.25)) == pytest.approx(2)
