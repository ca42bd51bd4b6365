"""The page of `audiomamba generate --gallery`."""

from __future__ import annotations

import base64
import re
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

from audiomamba import gallery
from tests.takes.records import Run, record


class Page(HTMLParser):
    """The elements of a page and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_gallery_holds_all_in_one_page(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "new" / "index.html"
    asked = ("--seconds", 0.1, "-n", 2, "--gallery", page)
    code, out, _ = run(*asked, "--rank")
    assert code == 0
    assert str(page) in out
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"src=\"(?!data:)|href=\"(?!#)|https?:", text)
    shown = Page(text)
    sounds = [found["src"] or "" for tag, found in shown.found if tag == "audio"]
    files = out.split()[2:4]
    for sound, file in zip(sounds, files, strict=True):
        kind, content = sound.split(",")
        assert kind == "data:audio/wav;base64"
        assert base64.b64decode(content) == Path(file).read_bytes()
    pictures = [found["src"] or "" for tag, found in shown.found if tag == "img"]
    for picture in pictures:
        assert base64.b64decode(picture.split(",")[1]).startswith(b"\x89PNG")
    assert len(pictures) == 2
    bits = float(str(record(Path(files[0]))["bits_per_sample"]))
    assert "rank 1 of 2, seed 1, index" in shown.text
    assert f"log-likelihood {-bits:.4f} bits per sample" in shown.text
    code, _, err = run(*asked)
    assert code == 1
    assert f"{page} is there already; add --overwrite" in err


def test_a_gallery_lists_its_sounds_and_leads_to_each(tmp_path: Path) -> None:
    drawn: list[int] = []

    def draw(i: int) -> bytes:
        drawn.append(i)
        return b"picture"

    exhibits = []
    for i in range(3):
        path = tmp_path / f"{i}.wav"
        path.write_bytes(b"sound")
        values = {"seed": 1, "index": i, "bits_per_sample": 2.0 + i, "temperature": 1.0}
        exhibits.append(gallery.Exhibit(path=path, record=values, draw=partial(draw, i)))
    gallery.write(tmp_path / "page.html", "three", exhibits)
    assert drawn == [0, 1, 2]
    shown = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    targets = [found["href"] for tag, found in shown.found if tag == "a"]
    assert targets == [f"#{found['id']}" for tag, found in shown.found if tag == "article"]
    assert "3 sounds\n" in shown.text
    assert "1.wav -3.0000" in shown.text
    named = [found["aria-label"] for tag, found in shown.found if tag == "audio"]
    assert named == ["0.wav", "1.wav", "2.wav"]
    gallery.write(tmp_path / "page.html", "one", exhibits[:1])
    assert "details" not in (tmp_path / "page.html").read_text()


def test_a_gallery_escapes_names(tmp_path: Path) -> None:
    path = tmp_path / "<b>'x'\"&.wav"
    path.write_bytes(b"sound")
    values = {"seed": 1, "index": 0, "bits_per_sample": 2.0, "temperature": 1.0}
    exhibit = gallery.Exhibit(path=path, record=values, draw=lambda: b"picture")
    gallery.write(tmp_path / "page.html", "<script>", [exhibit])
    shown = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert not {"script", "b"} & {tag for tag, _ in shown.found}
    assert path.name in shown.text
    (picture,) = [found for tag, found in shown.found if tag == "img"]
    assert picture["alt"] == f"Waveform and spectrogram of {path.name}"
