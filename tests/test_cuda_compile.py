"""NVRTC is found and told what to compile for; what it made is kept."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from audiomamba.config import Tier, unet
from audiomamba.engine import cuda_compile, cuda_kept, cuda_nvrtc
from audiomamba.engine.cuda_compile import architecture_of, compile_kernel, why_not_cuda
from audiomamba.engine.cuda_plan import plan_cuda
from audiomamba.engine.layout import Layout
from audiomamba.models.waveform import WaveformModel

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cuda_kept.VARIABLE, str(tmp_path / "kept"))


@pytest.fixture
def _nvrtc() -> None:
    try:
        cuda_nvrtc.nvrtc()
    except OSError as error:
        pytest.skip(str(error))


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def set_it(*numbers: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: numbers)
        why_not_cuda.cache_clear()

    return set_it


def test_nvrtc_is_called_what_each_version_calls_it() -> None:
    names = {
        (version, platform): cuda_nvrtc.library_name(version, platform)
        for version in ("11.8", "12.6", "13.0")
        for platform in ("linux", "win32")
    }
    assert names == {
        ("11.8", "linux"): "libnvrtc.so.11.2",
        ("11.8", "win32"): "nvrtc64_112_0.dll",
        ("12.6", "linux"): "libnvrtc.so.12",
        ("12.6", "win32"): "nvrtc64_120_0.dll",
        ("13.0", "linux"): "libnvrtc.so.13",
        ("13.0", "win32"): "nvrtc64_130_0.dll",
    }


def test_nvrtc_is_searched_for_where_packages_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = [
        "torch/lib",
        "a/nvidia/cuda_nvrtc/lib",
        "b/nvidia/cu13/lib",
        "c/nvidia/cu13/bin/x86_64",
    ]
    files = [tmp_path / folder / "libnvrtc.so.13" for folder in where]
    for file in files:
        file.parent.mkdir(parents=True)
        file.touch()
    (tmp_path / "b/nvidia/cu13/lib/libnvrtc.so.12").touch()
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "torch/__init__.py"))
    folders = [str(tmp_path / name) for name in ("absent", "a", "b", "c", "a")]
    assert list(cuda_nvrtc.copies("libnvrtc.so.13", folders)) == files


def test_a_copy_of_pytorch_comes_before_one_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    loaded: list[str] = []

    def load(path: str) -> str:
        loaded.append(path)
        if path == str(broken):
            raise OSError("wrong ELF class")
        return path

    found = [broken, whole]
    monkeypatch.setattr(cuda_nvrtc, "copies", lambda name, folders: found)
    monkeypatch.setattr(cuda_nvrtc.ctypes, "CDLL", load)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(sys, "platform", "linux")
    assert cuda_nvrtc.nvrtc.__wrapped__() == str(whole)
    found.remove(whole)
    assert cuda_nvrtc.nvrtc.__wrapped__() == "libnvrtc.so.13"
    assert loaded == [str(broken), str(whole), str(broken), "libnvrtc.so.13"]


@pytest.mark.usefixtures("_nvrtc")
def test_code_is_for_the_device_or_for_the_newest_before_it(
    capability: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = max(cuda_nvrtc.known_architectures())
    for numbers, expected in (((9, 0), "sm_90"), ((8, 1), "compute_80")):
        capability(*numbers)
        assert architecture_of(GPU) == expected
        assert why_not_cuda(GPU) is None
    capability(12, 1)
    assert architecture_of(GPU) == ("sm_121" if newest >= 121 else f"compute_{newest}")
    capability(99, 0)
    assert architecture_of(GPU) == f"compute_{newest}"
    monkeypatch.setattr(cuda_nvrtc, "known_architectures", lambda: (75, 80))
    capability(7, 0)
    assert why_not_cuda(GPU) == "NVRTC knows no GPU as old as cuda:0, of capability 7.0"


def test_why_a_gpu_is_not_compiled_for_is_told(
    capability: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert why_not_cuda(torch.device("cpu")) == "the model is on cpu; it needs an NVIDIA GPU"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    capability(5, 0)
    assert why_not_cuda(GPU) == "cuda:0 has capability 5.0; the kernel needs 7.0"

    def lost() -> None:
        raise OSError("libnvrtc.so.13: not found")

    monkeypatch.setattr(cuda_nvrtc, "known_architectures", lost)
    capability(9, 0)
    assert why_not_cuda(GPU) == (
        "NVRTC, which comes with PyTorch, cannot be loaded: libnvrtc.so.13: not found"
    )
    monkeypatch.setattr(torch.version, "cuda", None)
    why_not_cuda.cache_clear()
    assert why_not_cuda(GPU) == "this PyTorch is not for NVIDIA GPUs"
    why_not_cuda.cache_clear()


@pytest.mark.usefixtures("_nvrtc")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "compute_80"])
def test_the_kernel_compiles_for_gpus_that_are_not_here(architecture: str) -> None:
    layout = Layout(WaveformModel(unet(64, 2, (4,), Tier(mixer="s6"), Tier(mixer="s4"))))
    plan = plan_cuda(layout, narrow=architecture == "sm_90", threads=512)
    told: list[None] = []
    code = compile_kernel(plan.header, architecture, lambda: told.append(None))
    assert code.startswith(b"\x7fELF") == architecture.startswith("sm")
    assert plan.shared_bytes <= 48 * 1024
    assert compile_kernel(plan.header, architecture, lambda: told.append(None)) == code
    assert len(told) == 1


@pytest.mark.usefixtures("_nvrtc")
def test_a_kernel_that_does_not_compile_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"cannot be compiled:(.|\n)*LEVELS"):
        compile_kernel("constexpr int THREADS = 64;", "sm_90")


def test_what_is_compiled_for_is_in_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "run.cu").write_text("x")
    (source / ".run.cu.swp").write_text("of an editor")
    made: list[list[str]] = []

    def compile_source(main: str, sources: dict[str, bytes], architecture: str) -> bytes:
        made.append(sorted(sources))
        return main.encode()

    monkeypatch.setattr(cuda_compile, "FOLDER", source)
    monkeypatch.setattr(cuda_nvrtc, "compile_source", compile_source)
    monkeypatch.setattr(cuda_nvrtc, "version", lambda: (13, 0))
    for _ in range(2):
        assert compile_kernel("a", "sm_90") == b"run.cu"
    assert made == [["plan.cuh", "run.cu"]]
    compile_kernel("b", "sm_90")
    compile_kernel("a", "sm_80")
    (source / "run.cu").write_text("y")
    compile_kernel("a", "sm_90")
    monkeypatch.setattr(cuda_nvrtc, "version", lambda: (13, 1))
    compile_kernel("a", "sm_90")
    assert len(made) == 5


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    for damage in (b"", b"short", bytes(100)):
        assert cuda_kept.kept("key", lambda: b"code") == b"code"
        assert cuda_kept.kept("key", lambda: pytest.fail("it is kept")) == b"code"
        (tmp_path / "kept/cuda/key").write_bytes(damage)
    assert cuda_kept.kept("key", lambda: b"again") == b"again"
    assert [path.name for path in (tmp_path / "kept/cuda").iterdir()] == ["key"]


def test_a_folder_that_cannot_be_written_is_told_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(cuda_kept.VARIABLE, str(tmp_path / "file"))
    monkeypatch.setattr(cuda_kept, "_homeless", {})
    cuda_kept._tell.cache_clear()
    assert cuda_kept.kept("key", lambda: b"code") == b"code"
    assert cuda_kept.kept("key", lambda: pytest.fail("the process has it")) == b"code"
    (message,) = caplog.messages
    assert message.startswith("compiled code cannot be kept (")
    assert message.endswith("; set AUDIOMAMBA_CACHE_DIR to a folder")
    assert cuda_kept.why_not_kept() is not None


def test_a_folder_is_that_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuda_kept.folder() == tmp_path / "kept/cuda"
    assert cuda_kept.why_not_kept() is None
    assert stat.S_ISDIR(cuda_kept.folder().stat().st_mode)
    monkeypatch.delenv(cuda_kept.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(cuda_kept.sys, "platform", "linux")
    assert cuda_kept.folder() == tmp_path / "xdg/audiomamba/cuda"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cuda_kept.folder() == tmp_path / ".cache/audiomamba/cuda"
    monkeypatch.setattr(cuda_kept.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cuda_kept.folder() == tmp_path / "local/audiomamba/cuda"
