from __future__ import annotations

import functools
import importlib
import io
import json
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import soundfile
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

from audiomamba.data import TokenStore, corpora
from audiomamba.data.corpora import DIGITS, fetch_beethoven, fetch_sc09, fetch_youtubemix
from audiomamba.files import sha256
from tests.commands import call


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    return partial(call, capsys)


Run = Callable[..., tuple[int, str, str]]


def wav(seed: int, samples: int = 200) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, samples)
    soundfile.write(stream, noise, 16000, format="WAV")
    return stream.getvalue()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and its address."""
    folder = tmp_path / "web"
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def speech_commands(web: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A little Speech Commands on the web: twelve words of three clips, and noise."""
    clips = [f"{word}/{i}_nohash_0.wav" for word in (*DIGITS, "cat", "up") for i in range(3)]
    contents = {
        "README.md": b"words",
        "validation_list.txt": "\n".join(name for name in clips if "/1_" in name).encode(),
        "testing_list.txt": "\n".join(name for name in clips if "/2_" in name).encode(),
        **{name: wav(seed) for seed, name in enumerate(clips)},
        "_background_noise_/dishes.wav": wav(99),
    }
    archive = web[0] / "speech_commands.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in contents.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    monkeypatch.setattr(corpora, "SPEECH_COMMANDS", f"{web[1]}/{archive.name}")
    monkeypatch.setattr(corpora, "SPEECH_COMMANDS_SHA256", sha256(archive))
    return archive


def test_the_address_and_the_sum_are_those_of_torchaudio() -> None:
    from torchaudio.datasets.speechcommands import _CHECKSUMS

    assert _CHECKSUMS[corpora.SPEECH_COMMANDS] == corpora.SPEECH_COMMANDS_SHA256


def test_sc09_is_fetched_and_prepared(run: Run, speech_commands: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "sc09"
    assert run("fetch", "sc09", folder) == (0, f"{folder}\n", "")
    assert {path.name for path in folder.iterdir() if path.is_dir()} == set(DIGITS)
    assert [path.name for path in folder.parent.iterdir()] == ["sc09"]
    assert run("prepare", folder, tmp_path / "tokens", "--quiet")[0] == 0
    store = TokenStore(tmp_path / "tokens")
    for number, split in enumerate(("train", "validation", "test")):
        paths = [file.path for file in store.files(split)]  # type: ignore[arg-type]
        assert sorted(paths) == sorted(f"{word}/{number}_nohash_0.wav" for word in DIGITS)
    rule = json.loads((tmp_path / "tokens/index.json").read_text())["split_rule"]
    assert rule.startswith("by validation_list.txt and testing_list.txt")

    some = ("--only", "zero,one", "--quiet")
    assert run("prepare", folder, tmp_path / "two", *some)[0] == 0
    assert len(TokenStore(tmp_path / "two").files()) == 6
    code, _, err = run("prepare", folder, tmp_path / "cat", "--only", "cat")
    assert (code, err) == (1, f"error: {folder} has no audio in a folder cat\n")


def test_another_archive_is_refused(
    speech_commands: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(corpora, "SPEECH_COMMANDS_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=f"sha256 {sha256(speech_commands)}, not 0{{64}}; it was"):
        fetch_sc09(tmp_path / "data" / "sc09")
    assert not list((tmp_path / "data").iterdir())


def test_an_archive_that_is_gone_is_one_line(
    run: Run, speech_commands: Path, tmp_path: Path
) -> None:
    speech_commands.unlink()
    code, _, err = run("fetch", "sc09", tmp_path / "sc09")
    assert code == 1
    assert err == (
        f"error: {corpora.SPEECH_COMMANDS} cannot be had, the server answers 404 File not found\n"
    )


@pytest.mark.parametrize("corpus", ["sc09", "youtubemix", "beethoven"])
def test_a_folder_that_is_there_is_left_alone(run: Run, tmp_path: Path, corpus: str) -> None:
    (tmp_path / "precious").write_text("")
    code, _, err = run("fetch", corpus, tmp_path)
    assert (code, err.count("\n")) == (1, 1)
    assert f"{tmp_path} is there already; remove it or name another folder" in err


def test_an_unknown_corpus_is_misuse(run: Run, tmp_path: Path) -> None:
    code, _, err = run("fetch", "sc10", tmp_path / "sc10")
    assert (code, err.count("\n")) == (2, 1)


def hub_error(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind(f"{status} Client Error\nmore", response=response)


def wrapped(status: int) -> LocalEntryNotFoundError:
    error = LocalEntryNotFoundError("An error happened\nmore")
    error.__cause__ = hub_error(HfHubHTTPError, status)
    return error


def refuse(monkeypatch: pytest.MonkeyPatch, error: Exception, token: str | None = None) -> None:
    def snapshot_download(*arguments: Any, **options: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)


@pytest.mark.parametrize("token", [None, "hf_secret"])
@pytest.mark.parametrize(
    "error",
    [hub_error(GatedRepoError, 403), hub_error(HfHubHTTPError, 401), wrapped(403)],
    ids=["gated", "unknown", "forbidden"],
)
def test_a_gated_corpus_says_in_one_line_what_to_do(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: Exception,
    token: str | None,
) -> None:
    refuse(monkeypatch, error, token)
    code, out, err = run("fetch", "youtubemix", tmp_path / "piano")
    assert (code, out) == (1, "")
    assert err == (
        "error: the Hugging Face Hub refuses the dataset krandiash/youtubemix "
        f"({'your token has no access' if token else 'you are not logged in'}): ask for access at "
        "https://huggingface.co/datasets/krandiash/youtubemix, then `hf auth login` or set "
        "HF_TOKEN; or train on any other folder of audio: audiomamba prepare FOLDER TOKENS\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [hub_error(HfHubHTTPError, 500), wrapped(500)])
def test_a_hub_out_of_reach_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    refuse(monkeypatch, error)
    message = f"^krandiash/beethoven cannot be had from the Hugging Face Hub: {str(error)[:8]}.*$"
    with pytest.raises(OSError, match=message):
        fetch_beethoven(tmp_path / "piano")


class ReadError(Exception):
    """As those of the Hub's network library, which are no OSErrors."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ReadError("Connection reset by peer\nmore"), "Connection reset by peer"),
        (ReadError(), "ReadError"),
    ],
)
def test_a_connection_that_breaks_in_mid_file_is_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, reason: str
) -> None:
    refuse(monkeypatch, error)
    code, _, err = run("fetch", "beethoven", tmp_path / "piano")
    start = "error: krandiash/beethoven cannot be had from the Hugging Face Hub: "
    assert (code, err) == (1, f"{start}{reason}\n")


def test_a_mistake_of_the_program_is_not_the_hub_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refuse(monkeypatch, TypeError("snapshot_download() got an unexpected argument"))
    with pytest.raises(TypeError, match="unexpected argument"):
        fetch_beethoven(tmp_path / "piano")


@pytest.mark.parametrize("archives", [0, 1, 2])
def test_the_archive_of_the_hub_is_unpacked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, archives: int
) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for number in range(archives):
        with zipfile.ZipFile(snapshot / f"{number}.zip", "w") as zipped:
            zipped.writestr("youtube_mix/out000.wav", wav(number))

    def snapshot_download(repository: str, *, repo_type: str, allow_patterns: str) -> str:
        assert (repository, repo_type) == ("krandiash/youtubemix", "dataset")
        assert allow_patterns == "*.zip"
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    if archives == 1:
        fetch_youtubemix(tmp_path / "piano")
        assert (tmp_path / "piano/youtube_mix/out000.wav").read_bytes() == wav(0)
        assert (snapshot / "0.zip").exists()
    else:
        with pytest.raises(OSError, match=f"holds {archives} zip archives .* not one"):
            fetch_youtubemix(tmp_path / "piano")


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("progress", [True, False])
def test_the_bars_of_the_hub_show_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, terminal: bool, progress: bool
) -> None:
    silenced: list[bool] = []
    bars = importlib.import_module("huggingface_hub.utils.tqdm")
    monkeypatch.setattr(bars, "disable_progress_bars", lambda: silenced.append(True))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    refuse(monkeypatch, hub_error(HfHubHTTPError, 500))
    with pytest.raises(OSError, match="cannot be had"):
        fetch_youtubemix(tmp_path / "piano", progress=progress)
    assert bool(silenced) != (terminal and progress)
