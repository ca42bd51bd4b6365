import dataclasses
import json
import sys
import types

import pytest

from audiomamba.recipe_results import append_result, read_results
from audiomamba.tokenizer import Tokenizer
from audiomamba.train import Outcome
from tests.recipes import load_recipe


def test_a_sweep_over_lengths_goes_on_where_it_was(tmp_path, capsys, caplog):
    sweep, out = load_recipe("length_scaling"), tmp_path / "sweep"
    common = ["--smoke", "--out", str(out), "--models", "s4-mlp", "--listen-every", "0"]
    sweep.main([*common, "--lengths", "1024", "--max-minutes", "1e-9"])
    assert "the same command goes on" in capsys.readouterr().out
    assert "no checkpoint to resume from" not in caplog.text  # the run is new
    sweep.main([*common, "--lengths", "1024"])
    sweep.main([*common, "--lengths", "1024", "2048"])
    assert capsys.readouterr().out.count("clips of 1024") == 1
    results = json.loads((out / "results.json").read_text())
    assert [(r["length"], r["batch"]) for r in results] == [(1024, 4), (2048, 2)]
    (out / "length_scaling.png").unlink()
    sweep.main(
        [*common, "--lengths", "1024", "2048", "--listen-every", "2", "--validate-every", "3"]
    )
    assert "clips of" not in capsys.readouterr().out  # these flags change no result
    assert (out / "length_scaling.png").stat().st_size > 10_000


def test_the_minutes_of_a_sweep_are_those_of_all_its_runs(tmp_path, monkeypatch):
    sweep, given = load_recipe("length_scaling"), []

    def train(model, config, resume):
        given.append(config.max_minutes)
        clock[0] += 90
        return Outcome(step=4, bits_per_sample=8.0, best_bits_per_sample=8.0, stopped=None, rank=1)

    clock = [0.0]
    monkeypatch.setattr("audiomamba.train.train", train)
    monkeypatch.setattr(sweep.time, "monotonic", lambda: clock[0])
    common = ["--smoke", "--out", str(tmp_path), "--models", "s4-mlp"]
    sweep.main([*common, "--lengths", "1024", "2048", "4096", "--max-minutes", "2"])
    assert given == [2, 0.5, pytest.approx(0, abs=1e-6)]
    assert given[-1] > 0


def test_a_sweep_without_lightning_says_so_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "audiomamba.train", None)
    with pytest.raises(SystemExit, match=r"^[^\n]*audiomamba\.train[^\n]*$"):
        load_recipe("length_scaling").main(["--smoke"])


def test_sweeps_beside_each_other_keep_all_results(tmp_path, monkeypatch):
    sweep = load_recipe("length_scaling")

    def train(model, config, resume):
        append_result(tmp_path, {"model": "another's"})
        return Outcome(step=1, bits_per_sample=8.0, best_bits_per_sample=8.0, stopped=None)

    monkeypatch.setattr(
        sweep, "result", lambda *_, **__: {"training": {}, "test_bits_per_sample": 8.0}
    )
    store = types.SimpleNamespace(tokenizer=Tokenizer(), sample_rate=16000)
    config = dataclasses.replace(sweep.RECIPE.train, out=str(tmp_path / "none"))
    about = {"model": "mine", "test_seconds": None}
    sweep.run(train, sweep.MODELS["s4-mlp"], about, config, store, tmp_path, {})
    assert [x["model"] for x in read_results(tmp_path)] == ["another's", "mine"]


def test_a_sweep_reads_a_file_of_flags(tmp_path, monkeypatch, capsys):
    sweep, file = load_recipe("length_scaling"), tmp_path / "flags.json"
    monkeypatch.chdir(tmp_path)
    for values, message in (
        ({"models": ["rnn"]}, "argument --models: invalid choice: 'rnn'"),
        ({"batch": 3}, "--length and --batch follow from --lengths and --samples"),
        ({"lengths": [1000], "data": "nowhere"}, "there is no folder nowhere"),
    ):
        file.write_text(json.dumps(values))
        with pytest.raises(SystemExit) as stopped:
            sweep.main(["--config", str(file)])
        assert message in capsys.readouterr().err + str(stopped.value.code)
