"""Sound in pieces: streamed, left and taken up again, from many prompts, and how likely it is."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from audiomamba.audiomodel import AudioModel
from audiomamba.config import ModelConfig, Tier
from audiomamba.engine.place import Draw, Place
from audiomamba.engine.steps import SteppedStreams
from audiomamba.generate import Job, generate_streams
from audiomamba.guard import Guard
from audiomamba.models.waveform import WaveformModel
from audiomamba.session import Take
from tests.cuda_on_cpu import emulate

S6 = Tier(mixer="s6", complex=True, n_layers=1, d_state=2)
LTI = Tier(mixer="lti", complex=True, n_layers=1, d_state=2)
ATTENTION = Tier(mixer="attention", n_heads=2, n_layers=1, context=5)
OPTIONS: dict[str, Any] = {"seed": 3, "temperature": 0.8, "top_k": 50, "top_p": 0.9}


def make(inner: Tier, seed: int = 0) -> AudioModel:
    torch.manual_seed(seed)
    config = ModelConfig(sample_rate=100, d_model=8, tiers=(LTI, inner), pools=(4,))
    return AudioModel(WaveformModel(config), name="tiny")


@pytest.fixture(scope="module", params=[S6, ATTENTION], ids=["numba", "torch"])
def model(request: pytest.FixtureRequest) -> AudioModel:
    return make(request.param)


def tone(samples: int) -> np.ndarray:
    return np.sin(np.arange(samples) / 5).astype(np.float32) * 0.5


def test_blocks_are_what_generate_makes(model: AudioModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in ("BLOCK", "LEAST"):
        monkeypatch.setattr(f"audiomamba.engine.threads.{size}", 16)
    torch.set_num_threads(2)
    whole = model.generate(samples=70, num=3, **OPTIONS)
    blocks = list(model.stream(samples=70, num=3, **OPTIONS))
    assert len(blocks) > 1
    assert {block.dtype for block in blocks} == {np.dtype(np.float32)}
    assert np.array_equal(np.concatenate(blocks, axis=1), whole)
    assert np.array_equal(np.concatenate(list(model.stream(0.7, **OPTIONS)), axis=1), whole[:1])


def test_a_stream_without_an_end_stops_when_it_is_closed(model: AudioModel) -> None:
    torch.set_num_threads(2)
    before = threading.active_count()
    stream = model.stream(num=2)
    begun = np.concatenate([next(stream), next(stream)], axis=1)
    stream.close()
    assert threading.active_count() == before
    assert np.array_equal(begun, model.generate(samples=begun.shape[1], num=2))


def test_each_of_many_prompts_is_continued_as_alone(model: AudioModel) -> None:
    prompts = [tone(13), tone(4) * -1, tone(1), tone(13) * 0.3]
    together = model.generate(samples=20, prompt=prompts, **OPTIONS)
    assert isinstance(together, list)
    for index, (before, row) in enumerate(zip(prompts, together, strict=True)):
        assert np.array_equal(row[: len(before)], before)
        (alone,) = model.generate_each(samples=20, first=index, prompt=before, **OPTIONS)
        assert np.array_equal(alone.waveform, row[len(before) :])


def test_a_prompt_in_pieces_is_read_once(model: AudioModel) -> None:
    before = tone(23)
    place = model.read(iter([before[:1], before[1:20], before[20:]]))
    assert (place.position, place.previous) == (23, model.tokenizer.encode(before)[-1])
    given = model.generate(samples=20, num=2, prompt=before)[:, 23:]
    for take in model.generate_each(samples=20, num=2, prompt=place):
        assert np.array_equal(take.waveform, given[take.index])
    for read in (place, [before, place]):
        with pytest.raises(ValueError, match=r"was read already.* give it to generate_each, start"):
            model.generate(samples=1 << 40, prompt=read)  # type: ignore[call-overload]
    for nothing in (iter([]), np.empty(0, np.float32)):
        with pytest.raises(ValueError, match="the prompt is empty"):
            model.read(nothing)


@pytest.mark.parametrize("prompt", [None, tone(10)], ids=["silence", "prompt"])
def test_a_session_that_was_left_goes_on_as_if_it_had_not(
    model: AudioModel, tmp_path: Path, prompt: np.ndarray | None
) -> None:
    whole = model.generate(samples=50, num=2, prompt=prompt, **OPTIONS)[:, -50:]
    session = model.start(num=2, prompt=prompt, **OPTIONS)
    assert np.isnan(session.bits_per_sample).all()
    parts = [session.run(7)]
    for samples in (1, 30, 12):
        session.save(tmp_path / "later.safetensors")
        session = model.resume(tmp_path / "later.safetensors")
        parts.append(session.run(samples))
    assert np.array_equal(np.concatenate(parts, axis=1), whole)
    assert (session.made, session.num) == (50, 2)
    if prompt is None:
        bits = [model.nll(row) for row in whole]
        np.testing.assert_allclose(session.bits_per_sample, bits, rtol=1e-5)


def test_what_numpy_counted_is_saved(model: AudioModel, tmp_path: Path) -> None:
    whole: dict[str, Any] = {"seed": np.int64(3), "first": np.int64(2), "top_k": np.int64(30)}
    given = {**whole, "temperature": np.float32(0.9), "top_p": np.float32(0.9)}
    some: Any = np.float32(20), np.int64(9)
    session = model.start(**given, guard=Guard(bits=some[0]))
    begun = session.run(some[1])
    session.save(tmp_path / "later.safetensors")
    rest = model.resume(tmp_path / "later.safetensors").run(8)
    (take,) = model.generate_each(samples=17, **{name: x.item() for name, x in given.items()})
    assert np.array_equal(np.concatenate([begun, rest], axis=1)[0], take.waveform)


def test_a_session_that_was_interrupted_does_not_go_on(model: AudioModel, tmp_path: Path) -> None:
    session = model.start()
    blocks = session.blocks(5000)
    next(blocks)
    blocks.close()
    for use in (lambda: session.run(1), lambda: session.save(tmp_path / "x")):
        with pytest.raises(ValueError, match="is under way or was interrupted"):
            use()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="samples is 0"):
        model.start().run(0)


def test_two_runs_of_a_session_are_not_mixed(model: AudioModel) -> None:
    session = model.start()
    one, other = session.blocks(5000), session.blocks(5000)
    next(one)
    with pytest.raises(ValueError, match="is under way or was interrupted"):
        next(other)


def test_a_session_whose_last_block_was_taken_goes_on(model: AudioModel, tmp_path: Path) -> None:
    session = model.start(**OPTIONS)
    blocks = session.blocks(20)
    first = next(blocks)
    assert first.shape[1] == session.made == 20
    session.save(tmp_path / "later.safetensors")
    blocks.close()
    both = np.concatenate([first, session.run(10)], axis=1)
    assert np.array_equal(both, model.generate(samples=30, **OPTIONS))


def test_the_bits_of_a_take_are_those_that_the_model_finds(model: AudioModel) -> None:
    for options in ({}, OPTIONS):
        for take in model.generate_each(samples=90, num=2, **options):
            assert take.bits_per_sample == pytest.approx(model.nll(take.waveform), rel=1e-5)
    before = tone(10)
    (take,) = model.generate_each(samples=90, prompt=before)
    whole = model.nll(np.concatenate([before, take.waveform]))
    assert take.bits_per_sample * 90 + model.nll(before) * 10 == pytest.approx(whole * 100)


def alter(path: Path, change: Callable[[dict[str, Any], dict[str, str]], None]) -> None:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    change(tensors, metadata)
    save_file(tensors, path, metadata)


def fact(metadata: dict[str, str], **facts: Any) -> None:
    metadata["facts"] = json.dumps({**json.loads(metadata["facts"]), **facts})


def test_the_format_is_looked_at_before_a_tensor_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = make(S6), tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"format": "audiomamba streams 2"})

    class Closed:
        def __init__(self, *arguments: Any) -> None:
            self._file = safe_open(*arguments)

        def __enter__(self) -> Closed:
            return self

        def __exit__(self, *error: object) -> None: ...

        def metadata(self) -> Any:
            return self._file.metadata()

    monkeypatch.setattr("audiomamba.saved_header.safe_open", Closed)
    with pytest.raises(ValueError, match=r"other\.safetensors is of the format .*streams 2"):
        model.resume(path)


def test_a_file_of_another_model_version_or_kind_is_refused(tmp_path: Path) -> None:
    model, path = make(S6), tmp_path / "later.safetensors"
    session = model.start()
    session.run(5)
    session.save(path)
    with pytest.raises(ValueError, match="saved with other weights"):
        make(S6, seed=1).resume(path)
    with pytest.raises(FileNotFoundError, match="no file"):
        model.resume(tmp_path / "nothing")
    model.resume(path)
    whole = path.read_bytes()
    for change, match in (
        (lambda t, m: m.update(format="audiomamba streams 0"), "streams 0.*reads"),
        (lambda t, m: m.clear(), "later.*holds other tensors; give a file of"),
        (lambda t, m: t.pop("nats"), "damaged or holds no saved streams"),
        (lambda t, m: t.update({"state.0": torch.zeros(1, 1)}), "later.*came where"),
        (lambda t, m: t.update({"state.1": torch.zeros(1, 3)}), r"later.* \(RuntimeError"),
        (lambda t, m: t.update({"state.1": t["state.1"].repeat_interleave(2, 0)}), "of 2 streams"),
        (lambda t, m: t.update(nats=torch.zeros(2).double()), r"nats .* shape \(2,\); .*, \(1,\)"),
        (lambda t, m: t.update(position=torch.tensor([5, 5])), "later.*position .* shape"),
        (lambda t, m: t.update(position=torch.tensor([5.0])), "position is torch.float32"),
        (lambda t, m: t.update(previous=torch.tensor([5], dtype=torch.int32)), "previous .*int32"),
        (lambda t, m: fact(m, made=5.5), "later.*made is 5.5; it must be a whole number"),
        (lambda t, m: fact(m, made=-1), "made is -1"),
        (lambda t, m: fact(m, seed=-1), "later.*seed is -1"),
        (lambda t, m: fact(m, weights="x"), "later.*weights is 'x'"),
        (lambda t, m: m.update(facts="{"), "damaged"),
        (lambda t, m: m.update(facts=json.dumps({})), "damaged"),
    ):
        path.write_bytes(whole)
        alter(path, change)
        with pytest.raises(ValueError, match=match):
            model.resume(path)
    path.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match="is damaged"):
        model.resume(path)


def test_a_disk_that_is_full_leaves_no_half_of_a_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    session = make(S6).start()
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: .*later"):
        session.save(tmp_path / "later.safetensors")
    assert not list(tmp_path.iterdir())


class Narrow(SteppedStreams):
    """Streams of which no more than three fit."""

    most = 3

    def __init__(self, network: WaveformModel, places: Sequence[Place], draw: Draw) -> None:
        if len(places) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        super().__init__(network, places, draw)


def test_what_does_not_fit_is_told_and_made_in_smaller_batches(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("audiomamba.engine.choice.SteppedStreams", Narrow)
    model = make(ATTENTION)
    with pytest.raises(MemoryError, match=r"8 streams together do not fit .* 3 do; .* or auto"):
        list(model.generate_each(samples=3, num=9, batch=8))
    with pytest.raises(MemoryError, match=r"9 streams .*, 3 do; start no more than 3 at once"):
        model.start(num=9)
    monkeypatch.setattr("audiomamba.engine.choice.STEPPED_TOGETHER", 8)
    takes = list(model.generate_each(samples=3, num=9, batch="auto"))
    assert [take.index for take in takes] == list(range(9))
    told = [r.getMessage() for r in caplog.records if r.name == "audiomamba.generate"]
    assert told == ["8 streams together do not fit into memory; going on by 3"]
    monkeypatch.setattr(Narrow, "most", 9)
    expected = model.generate(samples=3, num=9)
    assert np.array_equal([take.waveform for take in takes], expected)
    monkeypatch.setattr(Narrow, "most", 0)
    with pytest.raises(MemoryError, match="not one stream fits"):
        model.generate(samples=3)


class Counted(SteppedStreams):
    """Streams of which no more than four fit, whichever batch they are of."""

    live = 0

    def __init__(self, network: WaveformModel, places: Sequence[Place], draw: Draw) -> None:
        if Counted.live + len(places) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        super().__init__(network, places, draw)
        Counted.live += len(places)
        weakref.finalize(self, self._leave, len(places))

    @staticmethod
    def _leave(count: int) -> None:
        Counted.live -= count


@pytest.mark.parametrize("batch", [4, "auto"])
def test_a_batch_has_gone_before_the_next_begins(
    monkeypatch: pytest.MonkeyPatch, batch: Any
) -> None:
    monkeypatch.setattr("audiomamba.engine.choice.SteppedStreams", Counted)
    monkeypatch.setattr("audiomamba.engine.choice.STEPPED_TOGETHER", 4)
    takes = list(make(ATTENTION).generate_each(samples=3, num=8, batch=batch))
    assert [take.index for take in takes] == list(range(8))
    assert Counted.live == 0


def test_generate_keeps_waveforms_and_no_places(monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[weakref.ref[Place]] = []

    def each(**options: Any) -> Iterator[Take]:
        for index in (2, 0, 3, 1):
            place = Place(state=[], position=1, previous=0)
            places.append(weakref.ref(place))
            take = Take(index=index, waveform=np.full(1, index), bits_per_sample=8.0, place=place)
            del place
            yield take
            del take
            assert sum(place() is not None for place in places) <= 1

    model = make(S6)
    monkeypatch.setattr(model, "generate_each", each)
    assert model.generate(samples=1, num=4).ravel().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_a_batch_of_any_size_makes_the_same(model: AudioModel, batch: int) -> None:
    plain = model.generate(samples=9, num=5)
    for take in model.generate_each(samples=9, num=5, batch=batch):
        assert np.array_equal(take.waveform, plain[take.index])


def test_streams_of_the_triton_engine_go_on_from_places(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    network = make(S6).network
    try:
        prompts = [np.array([100, 120, 130, 90, 80]), np.array([7])]
        job = Job(samples=3, prompt=[*prompts])
        made = {m.index: m for m in generate_streams(network, job, num=2, engine="triton")}
    except ValueError as error:
        pytest.skip(str(error))
    for other in generate_streams(network, job, num=2, engine="torch"):
        mine = made[other.index]
        assert np.array_equal(mine.tokens, other.tokens)
        assert mine.nats == pytest.approx(other.nats, rel=1e-5)
        assert (mine.place.position, mine.place.previous) == (
            other.place.position,
            other.place.previous,
        )
    places: list[Any] = [made[0].place, made[1].place]
    rest = Job(samples=3, prompt=places)
    gone_on = {m.index: m for m in generate_streams(network, rest, num=2, engine="triton")}
    whole = Job(samples=6, prompt=[*prompts])
    for m in generate_streams(network, whole, num=2, engine="triton"):
        assert np.array_equal(m.tokens[3:], gone_on[m.index].tokens)


def test_weights_in_bfloat16_are_kept_through_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = make(LTI).network
    with pytest.raises(ValueError, match=r"weights is 'bfloat16', but the numba engine, .* alone"):
        AudioModel(network, weights="bfloat16")
    with pytest.raises(ValueError, match="weights is 'int4'; choose one of float32, bfloat16"):
        AudioModel(network, weights="int4")  # type: ignore[arg-type]
    path = tmp_path / "later.safetensors"
    with monkeypatch.context() as patch:
        if torch.cuda.is_available():
            network.cuda()
        else:
            emulate(patch)
            for module in ("engine.choice", "audiomodel"):
                patch.setattr(f"audiomamba.{module}.choose_engine", lambda *_: "cuda")
        exact, near = AudioModel(network), AudioModel(network, weights="bfloat16")
        prompt = tone(5)
        whole = near.generate(samples=40, seed=1, prompt=prompt)[:, 5:]
        session = near.start(seed=1, prompt=prompt)
        begun = session.run(9)
        session.save(path)
        exact.resume(path).save(path)  # says what it was, not what the model is
        rest = exact.resume(path).run(31)
        assert np.array_equal(np.concatenate([begun, rest], axis=1), whole)
        assert next(near.generate_each(samples=9)).bits_per_sample != (
            next(exact.generate_each(samples=9)).bits_per_sample
        )
    network.cpu()
    with pytest.raises(ValueError, match="weights is 'bfloat16', but the numba engine"):
        AudioModel(network).resume(path)
    AudioModel(network, weights="float32").resume(path).run(1)
