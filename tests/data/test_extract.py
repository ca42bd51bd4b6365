"""An archive becomes a folder, and writes nowhere else."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from audiomamba.data.download import extract
from audiomamba.files import part_of
from tests.data.contents import CONTENT, names

FILES = {"a.txt": b"a", "deep/er/b.bin": CONTENT, "empty": b""}


def pack(path: Path, contents: dict[str, bytes] = FILES, *extra: tarfile.TarInfo) -> Path:
    """Make a tar archive of files and whatever else."""
    with tarfile.open(path, f"w:{path.suffix[1:].replace('tar', '')}") as tar:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o7777
            tar.addfile(entry, io.BytesIO(content))
        for entry in extra:
            tar.addfile(entry)
    return path


def zip_up(path: Path, contents: dict[str, bytes] = FILES, mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in contents.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            zipped.writestr(info, content)
    return path


def pack_any(path: Path, contents: dict[str, bytes] = FILES) -> Path:
    return (zip_up if path.suffix == ".zip" else pack)(path, contents)


def tree(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


KINDS = ["x.tar", "x.tar.gz", "x.tar.bz2", "x.tar.xz", "x.zip"]


@pytest.mark.parametrize("name", KINDS)
def test_an_archive_becomes_a_folder(tmp_path: Path, name: str) -> None:
    archive = pack_any(tmp_path / name, {**FILES, "./c": b"c"})
    (tmp_path / "out").mkdir()  # empty
    assert extract(archive, tmp_path / "out") == tmp_path / "out"
    assert tree(tmp_path / "out") == {**FILES, "c": b"c"}
    assert (tmp_path / "out/a.txt").stat().st_mode & 0o7111 == 0
    extract(archive, tmp_path / "new/some", keep=lambda path: path.parts[0] == "deep")
    assert tree(tmp_path / "new") == {"some/deep/er/b.bin": CONTENT}
    assert names(tmp_path) == ["new", "out", name]


def test_what_a_killed_process_unpacked_is_swept(
    tmp_path: Path, killed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, left = pack_any(tmp_path / "x.tar"), []
    for process in (killed, os.getpid(), os.getppid()):
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda process=process: process)
            left.append(part_of(tmp_path / "out"))
        (left[-1] / "deep").mkdir(parents=True)
        (left[-1] / "deep/stale.txt").write_bytes(b"left")
    extract(archive, tmp_path / "out")
    assert tree(tmp_path / "out") == FILES
    assert [path for path in left if path.exists()] == left[2:]  # of a process that lives


@pytest.mark.parametrize("name", KINDS)
def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, name: str) -> None:
    archive = pack_any(tmp_path / name)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").write_text("")
    for place in (tmp_path / "out", tmp_path / "out/precious"):
        with pytest.raises(FileExistsError, match=r"is there already; remove it or name another"):
            extract(archive, place)
    assert names(tmp_path / "out") == ["precious"]


def entry(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


OUTSIDE = ["../evil", "/evil", "a/../../evil", "..\\evil", "C:\\evil", "C:evil", "\\\\host\\evil"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", ["x.tar", "x.tar.gz", "x.zip"])
def test_a_name_that_leads_outside_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    archive = pack_any(tmp_path / kind, {"a": b"", name: b"x"})
    with pytest.raises(ValueError, match=r"is not safe: .*evil' leads outside the folder"):
        extract(archive, tmp_path / "out")
    assert names(tmp_path) == [kind]


@pytest.mark.parametrize(
    "hostile",
    [
        entry("link", tarfile.SYMTYPE, "../.."),
        entry("link", tarfile.SYMTYPE, "a.txt"),
        entry("link", tarfile.LNKTYPE, "/etc/passwd"),
        entry("link", tarfile.LNKTYPE, "a.txt"),
        entry("link", tarfile.CHRTYPE),
        entry("link", tarfile.BLKTYPE),
        entry("link", tarfile.FIFOTYPE),
    ],
)
def test_links_and_devices_are_refused(tmp_path: Path, hostile: tarfile.TarInfo) -> None:
    archive = pack(tmp_path / "x.tar.gz", FILES, hostile)
    with pytest.raises(ValueError, match="is not safe: 'link' is a link or device"):
        extract(archive, tmp_path / "out", keep=lambda path: path.name != "link")
    assert names(tmp_path) == ["x.tar.gz"]


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    archive = zip_up(tmp_path / "x.zip", {"link": b"/etc/passwd"}, mode=0o120777)
    with pytest.raises(ValueError, match="is not safe: 'link' is a link or device"):
        extract(archive, tmp_path / "out")


@pytest.mark.parametrize("name", KINDS)
def test_too_much_is_refused_while_it_is_unpacked(tmp_path: Path, name: str) -> None:
    archive = pack_any(tmp_path / name, {"a": bytes(600), "b": bytes(401)})
    with pytest.raises(ValueError, match=r"holds more than 1000 bytes"):
        extract(archive, tmp_path / "out", limit_bytes=1000)
    assert names(tmp_path) == [name]
    extract(archive, tmp_path / "out", limit_bytes=1001)


@pytest.mark.parametrize(
    ("name", "how"),
    [(name, how) for name in KINDS for how in ("text", "empty", "cut")]
    + [(name, "flipped") for name in KINDS[1:]],  # plain tar has no checksum of contents
)
def test_a_damaged_archive_is_told(tmp_path: Path, name: str, how: str) -> None:
    archive = pack_any(tmp_path / name)
    packed = archive.read_bytes()
    middle = len(packed) // 2
    damaged = {
        "text": b"no archive",
        "empty": b"",
        "cut": packed[:middle],
        "flipped": packed[:middle] + bytes([packed[middle] ^ 255]) + packed[middle + 1 :],
    }
    archive.write_bytes(damaged[how])
    with pytest.raises(ValueError, match=rf"{name} is damaged, or not a tar or zip archive: \w"):
        extract(archive, tmp_path / "out")
    assert names(tmp_path) == [name]
