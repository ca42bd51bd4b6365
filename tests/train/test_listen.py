import dataclasses
from pathlib import Path
from unittest.mock import Mock

import numpy as np

from audiomamba import audio, checkpoint
from audiomamba.audiomodel import AudioModel
from audiomamba.models.waveform import WaveformModel
from audiomamba.plot import spectrogram
from audiomamba.train import train
from audiomamba.train_folder import LISTEN
from audiomamba.train_listen import Listener, Take
from audiomamba.train_log import Report
from tests.train.runs import MODEL, config


def test_samples_are_of_the_averaged_model_and_disturb_nothing(data, tmp_path):
    runs = [
        config(data, tmp_path / str(every), steps=6, listen_every=every, listen_seconds=0.1, seed=3)
        for every in (0, 2, 6)
    ]
    for c in runs:
        train(MODEL, c)
    silent, often, last = (Path(c.out) for c in runs)
    weights = (silent / checkpoint.WEIGHTS).read_bytes()
    assert (often / checkpoint.WEIGHTS).read_bytes() == weights
    assert (last / checkpoint.WEIGHTS).read_bytes() == weights
    assert not (silent / LISTEN).exists()
    assert (often / LISTEN / "step_2.wav").exists()
    assert {path.name for path in (last / LISTEN).iterdir()} == {"step_6.wav", "step_6.png"}
    assert (last / LISTEN / "step_6.png").read_bytes().startswith(b"\x89PNG")
    expected = AudioModel(checkpoint.load(last)).generate(seconds=0.1, seed=3)[0]
    heard = audio.read(last / LISTEN / "step_6.wav", MODEL.sample_rate)
    np.testing.assert_allclose(heard, expected, atol=2 / 32768)


def test_a_sample_that_cannot_be_written_ends_no_training(data, tmp_path, caplog):
    (tmp_path / "run").mkdir()
    c = config(data, tmp_path / "run", listen_every=8, listen_seconds=0.1)
    train(MODEL, dataclasses.replace(c, steps=1))
    (tmp_path / "run" / LISTEN).write_text("in the way")
    assert train(MODEL, c, resume=True).step == 8
    assert "no sample of step 8: " in caplog.text


def test_listening_is_one_at_a_time_and_can_be_left_off(tmp_path, caplog):
    listener = Listener(tmp_path / LISTEN, samples=1 << 30, seed=0)
    network = WaveformModel(MODEL)
    listener.begin(network, 5)
    assert listener.finished() is None
    listener.begin(network, 7)
    assert "no sample of step 7: that of step 5 is not finished" in caplog.text
    listener.close()
    assert listener.finished() is None
    assert "no sample of step 5: training has ended" in caplog.text
    assert not (tmp_path / LISTEN).exists()


def test_sounds_go_to_the_logs_that_play_them(tmp_path):
    picture, wave = tmp_path / "step_4.png", np.zeros(2048, np.float32)
    spectrogram(wave, 16000, picture)
    take = Take(step=4, waveform=wave, sample_rate=16000, audio=tmp_path / "a.wav", picture=picture)
    wandb, board, table = Mock(), Mock(), Mock()
    del board.log_audio, table.log_audio, table.experiment.add_audio
    Report([wandb, board, table], 10).sound(take)
    wandb.log_audio.assert_called_once_with("listen/sample", [str(tmp_path / "a.wav")], 4)
    wandb.log_image.assert_called_once_with("listen/spectrogram", [str(picture)], 4)
    name, heard, *rest = board.experiment.add_audio.call_args.args
    assert (name, heard.shape, rest) == ("listen/sample", (1, 2048), [4, 16000])
    name, image, step = board.experiment.add_image.call_args.args
    assert (name, image.shape[2], step) == ("listen/spectrogram", 3, 4)
    assert 0 <= image.min() < image.max() <= 1
    assert [call[0] for call in table.method_calls] == []
