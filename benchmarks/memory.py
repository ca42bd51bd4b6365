"""How much memory a stream holds as it grows longer.

    python benchmarks/memory.py [-m MODEL] [--device cuda] [--streams N] [--seconds S ...]

`AudioModel.stream` makes sound that is thrown away. On a GPU the figure is what PyTorch holds for
the streams beyond one of them, with which the engine's weights are held too; on a CPU it is the
growth of the process's resident memory since the first block, which compiles.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import torch

import audiomamba
from audiomamba.files import replacing
from audiomamba.progress import AudioBar
from audiomamba.provenance import provenance

RESULTS = Path(__file__).parent / "results"
SECONDS = (1, 10, 60, 600, 3600)


def held(device: str) -> int:
    """Return bytes of the device, or of this process."""
    if device != "cpu":
        torch.cuda.synchronize()
        return int(torch.cuda.memory_allocated())
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-m", "--model", default="piano")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--streams", type=int, default=1, metavar="N")
    parser.add_argument("--seconds", nargs="+", type=float, default=SECONDS, metavar="S")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    flags = parser.parse_args()
    model = audiomamba.load(flags.model, device=flags.device)
    record = {
        **provenance(flags.device, packages=["numba", "triton"]),
        "model": flags.model,
        "streams": flags.streams,
        "rows": [],
    }
    slug = re.sub(r"[^a-z0-9]+", "_", f"{flags.model} {record['device']}".lower())
    path = flags.out / f"memory_{slug}.json"
    flags.out.mkdir(parents=True, exist_ok=True)
    lengths = sorted(flags.seconds)
    before, made, beyond = 0, 0, flags.streams
    if flags.device != "cpu":
        if flags.streams < 2:
            parser.error("--streams must be 2 or more on a GPU: of one, the weights are not told")
        one = model.stream(lengths[-1], num=1, seed=0, guard=False)
        next(one)
        before, beyond = held(flags.device), flags.streams - 1
        one.close()
    with AudioBar(lengths[-1]) as bar:
        for block in model.stream(lengths[-1], num=flags.streams, seed=0, guard=False):
            if not made and flags.device == "cpu":
                before = held(flags.device)
            made += block.shape[1]
            bar.update(made / model.sample_rate - bar.n)
            while lengths and made >= lengths[0] * model.sample_rate:
                row = {
                    "seconds": lengths.pop(0),
                    "bytes_per_stream": (held(flags.device) - before) / beyond,
                }
                record["rows"].append(row)
                with replacing(path) as part:
                    part.write_text(json.dumps(record, indent=2) + "\n")
                print(row, flush=True)


if __name__ == "__main__":
    main()
