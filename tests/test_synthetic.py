import importlib
import json
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiomamba.models.waveform import WaveformModel
from audiomamba.train_folder import held

RECIPES = Path(__file__).parent.parent / "recipes"
NAMES = ("induction_heads", "selective_copying")
SMALL = {
    "d-model": 8, "n-layers": 1, "d-state": 4, "n-heads": 2, "vocabulary": 8, "answers": 2,
    "length": 12, "batch": 3, "steps": 6, "test-from": 8, "test-to": 32, "test-rows": 5,
    "test-batch": 2, "test-chunk": 7, "log-every": 2, "validate-every": 4, "checkpoint-every": 5,
    "accelerator": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def folder_of_recipes():
    """Let recipes import each other, as they do when one of them is run."""
    sys.path.insert(0, str(RECIPES))
    yield
    sys.path.remove(str(RECIPES))
    for name in ("synthetic", "synthetic_run", *NAMES):
        sys.modules.pop(name, None)


def run(name, *arguments, **changes):
    """Run a recipe in small, with `changes` as flags."""
    module = importlib.import_module(name)
    flags = {key: str(value) for key, value in (SMALL | changes).items()}
    words = [word for key, value in flags.items() for word in ("--" + key, value)]
    return sys.modules["synthetic_run"].run(module.RECIPE, [*words, *arguments])


def config(**changes):
    return importlib.import_module("synthetic").Config(**changes)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(0, 20), st.sampled_from([4, 8, 256]), st.integers(0, 99))
def test_induction_asks_for_what_followed_the_only_other_trigger(answers, spare, vocabulary, seed):
    c = config(answers=answers, vocabulary=vocabulary)
    draw = importlib.import_module("induction_heads").draw
    length = 2 * answers + 1 + spare
    tokens, expected = draw(np.random.default_rng(seed), 5, length, c)
    assert tokens.shape == (5, length)
    assert expected.shape == (5, answers)
    for row, wanted in zip(tokens, expected, strict=True):
        first, last = np.flatnonzero(row == vocabulary - 1)
        assert last == length - answers
        assert first + answers < last
        assert (row[first + 1 : first + 1 + answers] == wanted).all()
        assert (row[last + 1 :] == wanted[:-1]).all()
        assert row.max() < vocabulary


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(0, 20), st.sampled_from([4, 8, 256]), st.integers(0, 99))
def test_copying_asks_for_the_data_in_order(answers, spare, vocabulary, seed):
    c = config(answers=answers, vocabulary=vocabulary)
    draw = importlib.import_module("selective_copying").draw
    length = 2 * answers + 1 + spare
    tokens, expected = draw(np.random.default_rng(seed), 5, length, c)
    assert tokens.shape == (5, length)
    assert (tokens[:, length - answers :] == vocabulary - 1).all()
    for row, wanted in zip(tokens[:, : length - answers], expected, strict=True):
        assert row[row > 0].tolist() == wanted.tolist()
        assert row.max() < vocabulary - 1


@pytest.mark.parametrize("name", NAMES)
def test_every_place_and_token_is_drawn(name):
    draw = importlib.import_module(name).draw
    c = config(answers=2, vocabulary=8)
    tokens, answers = draw(np.random.default_rng(0), 4000, 10, c)
    if name == "induction_heads":
        counts = (tokens[:, :6] == 7).sum(axis=0)  # the trigger and 2 tokens end before the last 2
        kinds = np.arange(7)
    else:
        counts = (tokens[:, :8] > 0).sum(axis=0)
        kinds = np.arange(1, 7)
    assert (abs(counts / counts.mean() - 1) < 0.15).all()
    values, counts = np.unique(answers, return_counts=True)
    assert (values == kinds).all()
    assert (abs(counts / counts.mean() - 1) < 0.15).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_stopped_run_resumes_to_the_same_bits(name, tmp_path, capsys):
    whole = run(name, out=tmp_path / "whole")
    assert run(name, out=tmp_path / "halves", **{"max-minutes": 1e-9}) is None
    assert "stopped by max_minutes at step 1 of 6; go on: add --resume" in capsys.readouterr().out
    halves = run(name, "--resume", out=tmp_path / "halves")

    one, other = (torch.load(tmp_path / n / "last.ckpt") for n in ("whole", "halves"))
    assert one["global_step"] == other["global_step"] == 6
    assert all(torch.equal(v, other["state_dict"][k]) for k, v in one["state_dict"].items())
    assert whole["validation"] == halves["validation"]
    assert [row["step"] for row in whole["validation"]] == [4, 6]
    assert [row["accuracy"] for row in whole["test"]] == [row["accuracy"] for row in halves["test"]]
    again = run(name, "--resume", out=tmp_path / "halves", steps=7)
    assert again["steps"] == 7


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_stops_after_the_step_and_resumes_to_the_same_bits(
    name, tmp_path, capsys, monkeypatch
):
    number = getattr(signal, name, None)
    if number is None:
        pytest.skip(f"the system has no {name}")
    whole = run("induction_heads", out=tmp_path / "whole")
    training = sys.modules["synthetic"].Training
    step = training.training_step

    def end(self, batch, index):
        if self.global_step == 2:
            signal.raise_signal(number)
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(training, "training_step", end)
        with pytest.raises(SystemExit) as stopped:
            run("induction_heads", out=tmp_path / "halves")
    assert stopped.value.code == 128 + number
    said = capsys.readouterr().out
    assert f"stopped by {name} at step 3 of 6; go on: add --resume" in said
    assert torch.load(tmp_path / "halves/last.ckpt")["global_step"] == 3
    halves = run("induction_heads", "--resume", out=tmp_path / "halves")

    one, other = (torch.load(tmp_path / n / "last.ckpt") for n in ("whole", "halves"))
    assert one["global_step"] == other["global_step"] == 6
    assert all(torch.equal(v, other["state_dict"][k]) for k, v in one["state_dict"].items())
    assert whole["validation"] == halves["validation"]


@pytest.mark.parametrize(
    ("mine", "theirs", "why"),
    [(None, None, None), (None, "SIGTERM", "SIGTERM"), ("max_minutes", "SIGUSR1", "SIGUSR1")],
)
def test_processes_stop_together_for_the_same_reason(mine, theirs, why):
    from audiomamba.train_stop import REASONS, agreed

    def reduce(code, *, reduce_op):
        assert reduce_op == "max"
        return torch.maximum(code, torch.tensor(float(REASONS.index(theirs))))

    strategy = SimpleNamespace(reduce=reduce, root_device="cpu")
    assert agreed(mine, SimpleNamespace(world_size=2, strategy=strategy)) == why


def test_a_run_leaves_table_results_picture_and_log(tmp_path, capsys):
    results = run("induction_heads", out=tmp_path)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written == json.loads(json.dumps(results))
    assert (results["preset"], results["steps"], results["config"]["seed"]) == ("mamba", 6, 0)
    assert [row["length"] for row in results["test"]] == [8, 16, 32]
    said = capsys.readouterr().out
    for row in results["test"]:
        assert f"{row['length']:>9} {row['accuracy']:>6.1f}" in said
        assert round(row["accuracy"] / 10, 9).is_integer()  # of 5 rows with 2 answers
    assert (tmp_path / "results.png").stat().st_size > 1000
    lines = (tmp_path / "logs/version_0/metrics.csv").read_text().splitlines()
    assert "train/bits_per_answer" in lines[0]
    assert len(lines) == 1 + 4  # steps 2, 4, 5, 6


@pytest.mark.parametrize("mixer", ["s6", "lti", "s4", "attention"])
def test_reading_by_chunks_equals_reading_at_once(mixer):
    synthetic = importlib.import_module("synthetic")
    draw = importlib.import_module("induction_heads").draw
    c = config(mixer=mixer, d_model=8, d_state=4, n_heads=2, length=9, answers=2, test_rows=7)
    network = WaveformModel(c.model()).double()
    tokens = torch.from_numpy(draw(np.random.default_rng(0), 3, 29, c)[0])
    accuracy = synthetic.accuracy(network, c, draw, 29)  # lets attention see all 29
    logits = network(tokens.long())[0][:, -2:]
    for chunk in (1, 5, 27, 100):
        found = synthetic.answer(network, tokens, 2, chunk)
        torch.testing.assert_close(found, logits, rtol=1e-9, atol=1e-9)
    other = config(**{**vars(c), "test_batch": 3, "test_chunk": 4})
    assert synthetic.accuracy(network, other, draw, 29) == accuracy
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 8
    assert not torch.equal(synthetic.answer(network, changed, 2, 5), logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_tiny_preset_learns(name, tmp_path):
    module = importlib.import_module(name)
    arguments = ["--preset", "tiny", "--accelerator", "cpu", "--out", str(tmp_path)]
    results = sys.modules["synthetic_run"].run(module.RECIPE, arguments)
    c = results["config"]
    (at_length,) = (r["accuracy"] for r in results["test"] if r["length"] == c["length"])
    assert at_length > 90


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"devices": "3x"}, "devices is 3x; it must be auto, a number, or numbers with commas"),
        ({"vocabulary": 10}, "vocabulary is 10; it must be a power of two from 4 to 256"),
        ({"length": 4}, "length is 4; it must be at least 5 for 2 answers"),
        ({"test-to": 4}, "test_to is 4; it must be at least test_from 8"),
        ({"mixer": "s5"}, "mixer is 's5'; choose one of"),
        ({"precision": "16"}, "precision is 16; it must be 32-true or bf16-mixed"),
        ({"accelerator": "abacus"}, ".*abacus"),
        ({"mixer": "attention", "n-heads": 3}, "d_model is 8; it must be a multiple of"),
    ],
)
def test_mistakes_end_with_one_line(tmp_path, changes, message):
    with pytest.raises(SystemExit, match=f"^error: {message}[^\n]*$"):
        run("induction_heads", out=tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_another_run_is_neither_overwritten_nor_resumed(tmp_path):
    with pytest.raises(SystemExit, match="holds no run to go on with; start it without --resume"):
        run("induction_heads", "--resume", out=tmp_path)
    run("induction_heads", out=tmp_path)
    with pytest.raises(SystemExit, match="holds a run; go on with it by --resume"):
        run("induction_heads", out=tmp_path)
    with pytest.raises(SystemExit, match="has batch 3, and this one has 4"):
        run("induction_heads", "--resume", out=tmp_path, batch=4)
    with pytest.raises(SystemExit, match="has task induction_heads, and this one has selective"):
        run("selective_copying", "--resume", out=tmp_path)


def test_a_folder_is_kept_for_the_run_that_goes_on_there(tmp_path):
    with (
        held(tmp_path),
        pytest.raises(SystemExit, match=r"^error: another process trains in [^\n]+$"),
    ):
        run("induction_heads", out=tmp_path)
    assert run("induction_heads", out=tmp_path)["steps"] == SMALL["steps"]


def test_a_full_device_is_told_in_one_line(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nMore of it.")

    monkeypatch.setattr("audiomamba.models.waveform.WaveformModel.forward", full)
    with pytest.raises(SystemExit, match=r"9 GiB; give a smaller --batch or --length, "):
        run("induction_heads", out=tmp_path)
    monkeypatch.undo()
    run("induction_heads", out=tmp_path)
    monkeypatch.setattr("synthetic_run.accuracy", full)
    with pytest.raises(SystemExit, match=r"9 GiB; give a smaller --test-batch or --test-chunk$"):
        run("induction_heads", "--resume", out=tmp_path)


def test_a_file_of_flags_may_name_the_preset(tmp_path):
    file = tmp_path / "flags.json"
    file.write_text(json.dumps({"preset": "s4", "weight_decay": 0.5, "seed": 1}))
    results = run("induction_heads", "--config", str(file), "--seed", "2", out=tmp_path / "run")
    c = results["config"]
    assert (results["preset"], c["mixer"], c["weight_decay"], c["seed"]) == ("s4", "s4", 0.5, 2)
    file.write_text(json.dumps({"preset": "s5"}))
    with pytest.raises(SystemExit):
        run("induction_heads", "--config", str(file), out=tmp_path / "run")


def test_a_loss_that_is_not_finite_ends_the_run_unsaved(tmp_path):
    with pytest.raises(SystemExit, match="no longer finite at step 2; start again with a lower"):
        run("induction_heads", out=tmp_path, **{"learning-rate": 1e30, "gradient-clip": 0})
    assert not (tmp_path / "last.ckpt").exists()


@pytest.mark.parametrize("name", NAMES)
def test_presets_have_folders_of_their_own_and_flags_with_help(name, capsys):
    recipe = importlib.import_module(name).RECIPE
    assert next(iter(recipe.presets)) == "mamba"
    for preset, c in recipe.presets.items():
        assert c.out == f"runs/{name}/{preset}"
        with torch.device("meta"):
            WaveformModel(c.model())
    assert set(recipe.paper) <= set(recipe.presets)
    for preset, scores in recipe.paper.items():
        assert set(scores) <= set(recipe.presets[preset].test_lengths())
    with pytest.raises(SystemExit):
        sys.modules["synthetic_run"].run(recipe, ["--preset", "tiny", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--vocabulary INT Kinds of tokens, all included; a power of two (default: 8)" in said
    assert said.count("--") > 35
