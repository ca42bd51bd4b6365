"""One page that plays and shows generated files, and needs nothing but itself."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from audiomamba.audio import naming
from audiomamba.files import replacing

_MEDIA = {"wav": "audio/wav", "flac": "audio/flac", "ogg": "audio/ogg", "mp3": "audio/mpeg"}

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 124rem; margin: auto; padding: 1rem; }}
body {{ overflow-wrap: anywhere; }}
main {{ display: grid; gap: 0 2rem; }}
main {{ grid-template-columns: repeat(auto-fill, minmax(min(100%, 40rem), 1fr)); }}
article {{ border-top: 1px solid #8888; padding: 1rem 0; }}
h1 {{ font-size: 1.5rem; }}
h2 {{ font-size: 1rem; margin: 0; }}
p {{ margin: .25rem 0 .75rem; opacity: .8; }}
ul {{ columns: 18rem; }}
summary {{ padding: .5rem 0; cursor: pointer; }}
audio, img {{ display: block; width: 100%; }}
img {{ height: auto; margin-top: .75rem; background: white; }}
@media (prefers-color-scheme: dark) {{ img {{ filter: brightness(.8); }} }}
</style>
</head>
<body>
<h1>{title}</h1>
"""


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """A file to show.

    Attributes:
        path: Audio, as `audiomamba.output.write_take` wrote it.
        record: What is known of it.
        draw: Gives a PNG.
    """

    path: Path
    record: dict[str, Any]
    draw: Callable[[], bytes]


def write(path: Path, title: str, exhibits: Sequence[Exhibit]) -> None:
    """Write the page; it appears whole or not at all.

    Args:
        path: The HTML file.
        title: Of the page.
        exhibits: In order; one picture and one file are held at a time.

    Raises:
        OSError: If a file cannot be read or the page not be written.
    """
    with (
        naming(path),
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8") as page,
    ):
        page.writelines(_lines(title, exhibits))


def _lines(title: str, exhibits: Sequence[Exhibit]) -> Iterator[str]:
    yield _HEAD.format(title=escape(title))
    if len(exhibits) > 1:
        yield f"<details>\n<summary>{len(exhibits)} sounds</summary>\n<ul>\n"
        for i, one in enumerate(exhibits):
            bits = f"{-one.record['bits_per_sample']:.4f}"
            yield f'<li><a href="#{i}">{escape(one.path.name)}</a> {bits}</li>\n'
        yield "</ul>\n</details>\n"
    yield "<main>\n"
    for i, one in enumerate(exhibits):
        name = escape(one.path.name)
        sound = _inline(_MEDIA[one.path.suffix[1:]], one.path.read_bytes())
        yield f'<article id="{i}">\n<h2>{name}</h2>\n<p>{escape(_caption(one.record))}</p>\n'
        yield f'<audio controls preload="metadata" aria-label="{name}" src="{sound}"></audio>\n'
        picture = _inline("image/png", one.draw())
        yield f'<img src="{picture}" alt="Waveform and spectrogram of {name}">\n</article>\n'
    yield "</main>\n</body>\n</html>\n"


def _caption(record: dict[str, Any]) -> str:
    parts = [
        f"seed {record['seed']}",
        f"index {record['index']}",
        *([f"{record['word']}, {record['probability']:.3f}"] if "word" in record else []),
        f"log-likelihood {-record['bits_per_sample']:.4f} bits per sample",
        f"temperature {record['temperature']:g}",
    ]
    if "rank" in record:
        parts.insert(0, f"rank {record['rank']} of {record['ranked']}")
    parts += [f"{fault['kind']} from {fault['start']:g}\xa0s" for fault in record.get("faults", ())]
    return ", ".join(parts)


def _inline(media: str, content: bytes) -> str:
    return f"data:{media};base64,{base64.b64encode(content).decode()}"
