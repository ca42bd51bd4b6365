"""Streams under a guard: the same where nothing is bad, taken back and drawn anew where it is."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import audiomamba
from audiomamba.audiomodel import AudioModel
from audiomamba.config import ModelConfig, Tier
from audiomamba.engine import rewind
from audiomamba.engine.choice import open_engine
from audiomamba.engine.place import Draw, Place
from audiomamba.engine.rewind import Piece, RewindingStreams, Rule
from audiomamba.generate import Job, Made, generate_streams
from audiomamba.guard import NOISE, Guard
from audiomamba.models.waveform import WaveformModel

LTI = Tier(mixer="lti", complex=True, n_layers=1, d_state=2)
S6 = Tier(mixer="s6", complex=True, n_layers=1, d_state=2)
NEVER = Guard(bits=100, seconds=0.2, back=0.4)
OFTEN = Guard(bits=7.6, seconds=0.2, back=0.4, tries=2)  # a random model has some 7.7


@pytest.fixture(scope="module")
def network() -> WaveformModel:
    torch.manual_seed(0)
    config = ModelConfig(sample_rate=100, d_model=8, tiers=(LTI, S6), pools=(4,))
    return WaveformModel(config).eval()


@pytest.fixture(scope="module")
def model(network: WaveformModel) -> AudioModel:
    return AudioModel(network, name="tiny")


def made(network: WaveformModel, job: Job, **options: Any) -> dict[int, Made]:
    return {one.index: one for one in generate_streams(network, job, **options)}


def same(one: Made, other: Made) -> bool:
    """Whether tokens and places are equal, to the last bit."""
    places = zip(one.place.state, other.place.state, strict=True)
    return (
        np.array_equal(one.tokens, other.tokens)
        and one.place.position == other.place.position
        and all(torch.equal(a, b) for a, b in places)
    )


@settings(max_examples=10, deadline=None)
@given(
    samples=st.integers(1, 150),
    num=st.integers(1, 4),
    seconds=st.floats(0.1, 0.7),
    back=st.floats(1, 3),
    seed=st.integers(0, 2**64 - 1),
)
def test_where_nothing_is_bad_a_guard_changes_no_bit(
    network: WaveformModel, samples: int, num: int, seconds: float, back: float, seed: int
) -> None:
    guard = Guard(bits=100, seconds=seconds, back=seconds * back)
    job = Job(samples=samples, seed=seed)
    plain = made(network, job, num=num)
    for index, one in made(network, dataclasses.replace(job, guard=guard), num=num).items():
        assert same(one, plain[index])
        assert (one.nats, one.rewinds) == (plain[index].nats, (0, 0, 0))


class Judge:
    """Finds pieces bad that end at a position of a stream, so many times."""

    def __init__(self, end: int, times: int) -> None:
        self.end, self.times = end, times
        self.seen: list[tuple[int, int]] = []

    def __call__(self, pieces: Sequence[Piece]) -> bool:
        last = pieces[-1]
        end = last.begin.position + len(last.tokens)
        self.seen.append((end, len(pieces)))
        self.times -= end == self.end
        return end == self.end and self.times >= 0


def watched(
    network: WaveformModel, judge: Judge, samples: int, **rule: int
) -> tuple[RewindingStreams, np.ndarray]:
    known = Rule(bad=judge, **{"samples": 10, "reach": 3, "tries": 2, **rule})
    start = Place(state=leaves_of(network), position=0, previous=128)
    streams = RewindingStreams(open_engine(network, "numba"), known, [start], Draw(seed=7))
    return streams, np.concatenate(list(streams.blocks(samples)), axis=1)[0]


def leaves_of(network: WaveformModel) -> list[torch.Tensor]:
    from audiomamba.state import leaves

    return leaves(network.initial_state(1))


def test_a_bad_piece_is_drawn_anew_with_other_numbers(network: WaveformModel) -> None:
    plain = made(network, Job(samples=75, seed=7))[0].tokens
    streams, tokens = watched(network, judge := Judge(50, 1), 75)
    assert np.array_equal(tokens[:20], plain[:20])
    assert not np.array_equal(tokens[20:50], plain[20:50])
    assert streams.rewinds() == [(1, 30, 0)]
    ends = [end for end, _ in judge.seen]
    assert ends == [10, 20, 30, 40, 50, 30, 40, 50, 60, 70, 75]
    assert max(held for _, held in judge.seen) == 3
    begin = made(network, Job(samples=20, seed=7))[0].place
    again = made(network, Job(samples=55, seed=rewind._another(7, 1), prompt=begin))[0].tokens
    assert np.array_equal(tokens[20:], again)
    # The likelihood is that of what stayed.
    bits = AudioModel(network).nll(network.config.tokenizer.decode(tokens))
    assert streams.nats()[0] == pytest.approx(bits * math.log(2) * 75, rel=1e-5)
    assert streams.places()[0].position == 75


def test_a_bad_beginning_and_a_bad_end_are_drawn_anew(network: WaveformModel) -> None:
    plain = made(network, Job(samples=35, seed=7))[0].tokens
    for end, kept in ((10, 0), (20, 0), (35, 10)):
        streams, tokens = watched(network, Judge(end, 1), 35)
        assert np.array_equal(tokens[:kept], plain[:kept])
        assert not np.array_equal(tokens[kept : kept + 10], plain[kept : kept + 10])
        assert streams.rewinds()[0].times == 1


def test_what_stays_bad_goes_on_and_that_is_told_once(
    network: WaveformModel, caplog: pytest.LogCaptureFixture
) -> None:
    streams, tokens = watched(network, Judge(50, 5), 75)
    assert len(tokens) == 75
    assert streams.rewinds() == [(2, 60, 10)]
    (told,) = [r.getMessage() for r in caplog.records if r.name == "audiomamba.engine.rewind"]
    assert told.startswith("stream 0 runs away at sample 40, also after it was drawn anew 2 times")

    caplog.clear()
    always = Judge(0, 0)
    always.__class__ = type("Always", (Judge,), {"__call__": lambda self, pieces: True})
    streams, tokens = watched(network, always, 200)
    assert streams.rewinds() == [(2, 20, 200)]
    assert len([r for r in caplog.records if r.name == "audiomamba.engine.rewind"]) == 1


def test_without_tries_a_guard_only_tells(
    network: WaveformModel, caplog: pytest.LogCaptureFixture
) -> None:
    guard = dataclasses.replace(OFTEN, tries=0)
    one = made(network, Job(samples=333, seed=3, guard=guard))[0]
    assert same(one, made(network, Job(samples=333, seed=3))[0])
    assert one.rewinds is not None
    assert one.rewinds.times == 0
    assert one.rewinds.bad > 0
    (told,) = [r.getMessage() for r in caplog.records if r.name == "audiomamba.engine.rewind"]
    assert re.fullmatch(r"stream 0 runs away at sample \d+; it goes on as it is", told)


def test_tries_count_anew_once_a_stream_has_come_through(network: WaveformModel) -> None:
    judge = Judge(50, 2)
    streams, _ = watched(network, judge, 75)
    assert streams.rewinds() == [(2, 60, 0)]
    judge.end, judge.times = 150, 2
    streams, _ = watched(network, judge, 200)
    assert streams.rewinds() == [(2, 60, 0)]


def test_a_stream_under_a_guard_is_what_it_is_alone(network: WaveformModel) -> None:
    job = Job(samples=333, seed=3, guard=OFTEN)
    together = made(network, job, num=5, batch=5)
    times = [together[index].rewinds.times for index in range(5)]  # type: ignore[union-attr]
    assert max(times) > 0
    assert len(set(times)) > 1
    for index, one in together.items():
        alone = made(network, job, first=index)[index]
        assert same(one, alone)
        assert one.rewinds == alone.rewinds
        assert one.nats == pytest.approx(alone.nats, rel=1e-12)
    for index, one in made(network, job, num=5, batch=2).items():
        assert same(one, together[index])


def test_pytorch_makes_the_same_under_a_guard(network: WaveformModel) -> None:
    job = Job(samples=75, seed=4, guard=OFTEN)
    expected = made(network, job, num=3, engine="numba")
    assert sum(one.rewinds.times for one in expected.values()) > 0  # type: ignore[union-attr]
    for index, one in made(network, job, num=3, engine="torch").items():
        assert np.array_equal(one.tokens, expected[index].tokens)
        assert one.rewinds == expected[index].rewinds
        assert one.nats == pytest.approx(expected[index].nats, rel=1e-5)


def test_a_guarded_session_is_taken_up_again(model: AudioModel, tmp_path: Path) -> None:
    path = tmp_path / "later.safetensors"
    session = model.start(num=2, seed=1, guard=OFTEN)
    first = session.run(130)
    assert np.array_equal(first, model.generate(samples=130, num=2, seed=1, guard=OFTEN))
    session.save(path)
    resumed = model.resume(path)
    rest = session.run(120)
    assert np.array_equal(resumed.run(120), rest)
    np.testing.assert_allclose(resumed.bits_per_sample, session.bits_per_sample, rtol=1e-12)
    bits = [model.nll(row) for row in np.concatenate([first, rest], axis=1)]
    np.testing.assert_allclose(session.bits_per_sample, bits, rtol=1e-5)
    unguarded = model.start(num=2, seed=1)
    unguarded.run(130)
    assert not np.array_equal(unguarded.run(120), rest)


def test_a_stream_is_as_late_as_it_goes_back(model: AudioModel) -> None:
    whole = model.generate(samples=333, num=3, guard=OFTEN)
    blocks = list(model.stream(samples=333, num=3, guard=OFTEN))
    assert np.array_equal(np.concatenate(blocks, axis=1), whole)
    assert [block.shape[1] for block in blocks] == [10] * 33 + [3]
    endless = model.stream(num=2, guard=OFTEN)
    begun = np.concatenate([next(endless) for _ in range(20)], axis=1)
    endless.close()
    assert begun.shape == (2, 200)


def test_a_prompt_is_read_before_a_guard_looks(model: AudioModel) -> None:
    before = np.sin(np.arange(23) / 5).astype(np.float32)
    plain = model.generate(samples=60, prompt=before)
    assert np.array_equal(model.generate(samples=60, prompt=before, guard=NEVER), plain)
    start = Place(state=leaves_of(model.network), position=0, previous=128)
    rule = NEVER.rule(100)
    streams = RewindingStreams(open_engine(model.network), rule, [start], Draw())
    streams.read(tokens := model.tokenizer.encode(before))
    assert streams.nats()[0] == pytest.approx(model.nll(before) * math.log(2) * len(tokens))
    after = np.concatenate(list(streams.blocks(60)), axis=1)
    assert np.array_equal(model.tokenizer.decode(after[0]), plain[0, 23:])


def test_the_limit_follows_from_the_bits_of_validation(model: AudioModel) -> None:
    with pytest.raises(ValueError, match="tiny has no validation bits"):
        model.generate(samples=1, guard=True)
    with pytest.raises(ValueError, match="tiny has no validation bits"):
        model.stream(guard=True)
    assert audiomamba.load("piano").default_guard().bits == pytest.approx(NOISE * 2.0714, rel=1e-4)
    known = AudioModel(model.network, validation_bits=5.0)
    assert known.default_guard() == Guard(bits=NOISE * 5)
    assert len(known.generate(samples=9, guard=True)[0]) == 9


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"bits": 0}, "bits is 0; it must be positive"),
        ({"bits": math.nan}, "bits is nan"),
        ({"bits": "3"}, "bits is '3'; it must be a number"),
        ({"bits": 3, "seconds": -1}, "seconds is -1"),
        ({"bits": 3, "seconds": 2}, "back is 1.0; it must be at least seconds, 2"),
        ({"bits": 3, "tries": -1}, "tries is -1; it must be 0 or more"),
        ({"bits": 3, "tries": 1.5}, "tries is 1.5; it must be a whole number"),
    ],
)
def test_a_guard_out_of_range_is_refused(values: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Guard(**values)
