"""How fast the kernels are on this GPU, beside its memory and beside other implementations.

    python benchmarks/kernels.py [--only PART ...] [--out FOLDER]
    python benchmarks/kernels.py --table RESULT.json

Medians of `triton.testing.do_bench`, the cache cleared before each call. "ms" is a call from
Python, "CUDA graph" the same replayed, without the cost of launching. A forward pass runs without
gradients; "forward+backward" gives those of every input and parameter. The floor is the larger of
bytes (each pass reads its inputs and writes its outputs once) over the speed of a copy measured
first, and exponentials over their rate; GB/s and the share of the floor are those of the graph,
where there is one. peers.json holds what was measured of mamba_ssm on one GPU, and is compared with
on that GPU only; where mamba_ssm runs, it is measured instead.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import re
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from kernels_plot import PASSES, plot, table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from audiomamba.files import replacing
from audiomamba.layers.mamba import Mamba, initial_dt
from audiomamba.provenance import provenance
from audiomamba_kernels import causal_conv1d, lti_scan, selective_scan

HERE = Path(__file__).parent
STATES = 16
EXPONENTIALS_PER_S = 3.7e12  # of an H100: 132 multiprocessors, 16 a clock
PATIENCE_S = 1.0  # slower calls of other implementations are left out
say = partial(print, flush=True)
Call = Callable[[], Any]
Case = dict[str, Any]  # name, shape, and what peers.json knows of it: [forward, forward+backward]


class Bench:
    """Times calls on one device and keeps what came of it."""

    def __init__(self, smoke: bool) -> None:
        if not smoke and not torch.cuda.is_available():
            raise SystemExit("no CUDA device is here; --smoke tries everything, tiny, on the CPU")
        torch.manual_seed(0)
        self.smoke = smoke
        self.device = torch.device("cpu" if smoke else "cuda")
        self.backend: Any = "cpu" if smoke else "triton"
        self.label = ""
        self.peers = json.loads((HERE / "peers.json").read_text())
        self.record: dict[str, Any] = {
            **provenance(self.device, packages=["triton"]),
            "backend": self.backend,
            "peer": self.peers["peer"],
            "peer_source": self.peers["source"],
            "exponentials_per_s": EXPONENTIALS_PER_S,
            "rows": [],
            "skipped": {},
            "errors": {},
        }
        self.theirs = None if smoke else mamba_ssm(self)

    def randn(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Return normal random numbers on the device."""
        return torch.randn(shape, device=self.device, dtype=dtype)

    @contextmanager
    def case(self, label: str) -> Iterator[None]:
        """Keep what is raised within, so that the rest goes on."""
        try:
            yield
        except Exception as error:
            self.record["errors"][label] = f"{type(error).__name__}: {error}"[:2000]
            say(f"FAILED {label}\n{traceback.format_exc()}")
        free()

    def ms(self, call: Call) -> float:
        """Return the median milliseconds of a call."""
        if self.smoke:
            return 1e3 * statistics.median(seconds(call) for _ in range(3))
        from triton.testing import do_bench

        return float(do_bench(call, warmup=10, rep=50, return_mode="median"))

    def times(self, call: Call) -> dict[str, float]:
        """Return the milliseconds of a call, and of its replay from a CUDA graph."""
        times = {"ms": self.ms(call)}
        if not self.smoke:
            with self.case(f"CUDA graph: {self.label}"):
                side = torch.cuda.Stream()
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    call()
                torch.cuda.current_stream().wait_stream(side)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    call()
                times["graph_ms"] = self.ms(graph.replay)
        return times

    def patient_ms(self, name: str, call: Call) -> float | None:
        """Return the milliseconds of a call, or None, said in the record, if too slow or big."""
        try:
            if (once := seconds(call)) < 3 * PATIENCE_S:  # the first call loads kernels
                once = seconds(call)
            if once < PATIENCE_S:
                return self.ms(call) if once < 0.1 else 1e3 * once
            why = f"one call takes {once:.1f} s"
        except torch.OutOfMemoryError:
            why = "out of memory"
        free()
        self.record["skipped"][f"{name}: {self.label}"] = why
        say(f"skipped {name}: {self.label}: {why}")
        return None

    def peak_gb(self, call: Call) -> float | None:
        """Return the memory allocated at most in a call, its arguments included."""
        if self.smoke:
            return None
        free()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() / 1e9

    def add(self, part: str, case: Case, which: int, found: dict[str, Any]) -> None:
        """Keep a row and print it: what was found, what was known, and what follows."""
        row = {"part": part, "name": case["name"], "shape": case["shape"], "pass": PASSES[which]}
        known = {key: x[which] for key, x in case.items() if key.endswith(("_ms", "_gb"))}
        if self.record["device"] != self.peers["device"]:
            known = {key: x for key, x in known.items() if key == "target_ms"}
        moved, exponentials = found.pop("moved", None), found.pop("exponentials", 0)
        row |= {key: x for key, x in (known | found).items() if x is not None}
        if moved is not None:
            best_s = row.get("graph_ms", row["ms"]) / 1e3
            copy_s = moved / self.record["copy_gb_per_s"] / 1e9
            floor_s = max(copy_s, exponentials / EXPONENTIALS_PER_S)
            row |= {"gb_per_s": moved / best_s / 1e9, "floor_ms": 1e3 * floor_s}
            row["share_of_floor"] = floor_s / best_s
        if "peer_ms" in row:
            row["ratio"] = row["peer_ms"] / row["ms"]
        self.record["rows"].append(row)
        shown = [f"{key} {x:.3g}" for key, x in row.items() if isinstance(x, float)]
        say(f"{self.label}: {', '.join(shown)}")


def passes(call: Callable[[], Tensor], inputs: list[Tensor], dy: Tensor) -> tuple[Call, Call]:
    """Return forward without gradients, and forward with those of the inputs."""
    return torch.no_grad()(call), lambda: torch.autograd.grad(call(), inputs, dy)


def moved(inputs: list[Tensor], dy: Tensor, which: int) -> int:
    """Return the bytes of inputs and output; backward reads inputs and dy, writes gradients."""
    read = sum(x.nbytes for x in inputs)
    return 3 * read + 2 * dy.nbytes if which else read + dy.nbytes


def copy(bench: Bench) -> None:
    """Measure a copy of 1 GiB: bytes read and written over time."""
    source = bench.randn(1 << (16 if bench.smoke else 29))
    target = torch.empty_like(source)
    bench.record["copy_gb_per_s"] = 2 * source.nbytes / bench.ms(lambda: target.copy_(source)) / 1e6
    say(f"copy: {bench.record['copy_gb_per_s']:.0f} GB/s")


def scan(bench: Bench, case: Case, which: int) -> dict[str, Any]:
    inputs, dy = scan_tensors(bench, *case["shape"])
    ours = passes(lambda: run_scan(inputs, bench.backend), inputs, dy)[which]
    plain = passes(lambda: run_scan(inputs, "torch"), inputs, dy)[which]
    found: dict[str, Any] = bench.times(ours)
    if bench.theirs:
        found["peer_ms"] = bench.ms(their_scan(bench.theirs[0], inputs, dy)[which])
    return found | {
        "torch_ms": bench.patient_ms("PyTorch", plain),
        "moved": moved(inputs, dy, which),
        "exponentials": dy.numel() * (2 * STATES + 8 if which else STATES + 4),
    }


def scan_tensors(
    bench: Bench, batch: int, channels: int, steps: int
) -> tuple[list[Tensor], Tensor]:
    """Return u, delta, A, B, C, D, z, delta_bias, and dy; channels are contiguous."""
    u, delta, z, dy = (bench.randn(batch, steps, channels) for _ in range(4))
    B, C = (bench.randn(batch, steps, STATES) for _ in range(2))
    A = -torch.arange(1.0, STATES + 1).repeat(channels, 1)
    dt = initial_dt(channels, 1e-3, 1e-1)
    bias = dt + torch.log(-torch.expm1(-dt))  # softplus of it is dt
    A, D, bias = (x.to(bench.device) for x in (A, torch.ones(channels), bias))
    return [x.requires_grad_() for x in (u, delta, A, B, C, D, z, bias)], dy


def run_scan(inputs: list[Tensor], backend: Any) -> Tensor:
    return selective_scan(*inputs, delta_softplus=True, backend=backend)[0]


def mamba_ssm(bench: Bench) -> tuple[Any, Any] | None:
    """Return mamba_ssm's scan and block if they are installed and run."""
    try:
        from mamba_ssm.modules.mamba_simple import Mamba as Block
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        their_scan(selective_scan_fn, *scan_tensors(bench, 1, 64, 64))[1]()
    except Exception as error:
        say(f"mamba_ssm does not run here ({error}); peers.json stands for it")
        return None
    bench.record["peer"] = f"mamba_ssm {importlib.metadata.version('mamba_ssm')}"
    bench.record["peer_source"] = "measured in the same run"
    return selective_scan_fn, Block


def their_scan(function: Any, inputs: list[Tensor], dy: Tensor) -> tuple[Call, Call]:
    """Return the passes of mamba_ssm's scan, whose layout is (batch, channels, time)."""
    given = [x.detach() for x in inputs]
    given = [(x.mT.contiguous() if x.dim() == 3 else x).requires_grad_() for x in given]
    return passes(lambda: function(*given, delta_softplus=True), given, dy.mT.contiguous())


def lti(bench: Bench, case: Case, which: int) -> dict[str, Any]:
    batch, channels, steps = case["shape"]
    u, z, dy = (bench.randn(batch, channels, steps).mT for _ in range(3))  # time is contiguous
    states = case.get("d_state", STATES) // 2
    A = (-0.5 + 1j * torch.arange(states)).repeat(channels, 1).to(bench.device)
    delta = initial_dt(channels, 1e-3, 1e-1).to(bench.device)
    inputs = [u, delta, A, torch.ones_like(A), torch.randn_like(A), torch.ones_like(delta)]
    inputs = [x.requires_grad_() for x in (*inputs, *([z] if case.get("gate", True) else []))]
    ours = passes(lambda: lti_scan(*inputs, backend=bench.backend)[0], inputs, dy)[which]
    found: dict[str, Any] = bench.times(ours) | {"moved": moved(inputs, dy, which)}
    shapes = (batch, channels, steps), (channels, steps)
    pair = [bench.randn(*x, dtype=torch.float32).requires_grad_() for x in shapes]
    fft = passes(lambda: fft_convolution(*pair), pair, torch.randn_like(pair[0]))[which]
    return found | {"peer_ms": bench.ms(fft)}


def fft_convolution(signal: Tensor, kernel: Tensor) -> Tensor:
    """Convolve (batch, channels, time) causally with (channels, time), as S4 does."""
    steps = signal.shape[-1]
    spectrum = torch.fft.rfft(signal, n=2 * steps) * torch.fft.rfft(kernel, n=2 * steps)
    return torch.fft.irfft(spectrum, n=2 * steps)[..., :steps]


def conv(bench: Bench, case: Case, which: int) -> dict[str, Any]:
    batch, channels, steps = case["shape"]
    x, dy = (bench.randn(batch, channels, steps).mT for _ in range(2))
    if case["name"] == "channels contiguous":
        x, dy = x.contiguous(), dy.contiguous()
    inputs = [x, *(bench.randn(channels, *n, dtype=torch.float32) for n in ((4,), ()))]
    inputs = [x.requires_grad_() for x in inputs]
    run = partial(causal_conv1d, *inputs, activation="silu", backend=bench.backend)
    ours = passes(lambda: run()[0], inputs, dy)[which]
    return bench.times(ours) | {"moved": moved(inputs, dy, which)}


def length(bench: Bench, case: Case, which: int) -> dict[str, Any]:
    """Time the scan, and attention of as many channels until it is too slow."""
    found = scan(bench, case, which)
    if not any(label.startswith("attention") for label in bench.record["skipped"]):
        _, channels, steps = case["shape"]
        heads = [bench.randn(1, channels // 64, steps, 64) for _ in range(3)]
        with bench.case(f"attention: {bench.label}"), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            found["attention_ms"] = bench.patient_ms(
                "attention", lambda: F.scaled_dot_product_attention(*heads, is_causal=True)
            )
    return found


def block(bench: Bench, case: Case, which: int) -> dict[str, Any]:
    batch, width, steps = case["shape"]
    selective = "time-invariant" not in case["name"]
    x = bench.randn(batch, steps, width, dtype=torch.float32).requires_grad_()
    dy = bench.randn(batch, steps, width)

    def autocast_pass(layer: torch.nn.Module, run: Any = None) -> Call:
        def call() -> Tensor:
            with torch.autocast(bench.device.type, torch.bfloat16):
                y = (layer if run is None else run)(x)
            return y if isinstance(y, Tensor) else y[0]

        return passes(call, [x, *layer.to(bench.device).parameters()], dy)[which]

    kind = {"selective": selective, "complex": not selective}
    layer = Mamba(width, STATES, **kind, backend=bench.backend)
    ours = autocast_pass(layer)
    found = {"ms": bench.ms(ours), "peak_gb": bench.peak_gb(ours)}
    with bench.case(f"torch.compile: {bench.label}"):
        torch._dynamo.reset()
        how = "aot_eager" if bench.device.type == "cpu" else "inductor"
        compiled = torch.compile(layer, fullgraph=True, dynamic=False, backend=how)
        found["compiled_ms"] = bench.ms(autocast_pass(layer, compiled))
    if bench.theirs and selective:
        theirs = autocast_pass(bench.theirs[1](d_model=width, d_state=STATES))
        found |= {"peer_ms": bench.ms(theirs), "peer_peak_gb": bench.peak_gb(theirs)}
    if "mambapy_ms" in case and importlib.util.find_spec("mambapy"):
        from mambapy.mamba import MambaBlock, MambaConfig

        config = MambaConfig(d_model=width, n_layers=1, d_state=STATES)
        found["mambapy_ms"] = bench.patient_ms("mambapy", autocast_pass(MambaBlock(config)))
    return found


# The block last: most of its time is compiling.
PARTS = {"scan": scan, "lti": lti, "conv": conv, "length": length, "block": block}


def cases(bench: Bench, part: str) -> list[Case]:
    """Return what a part measures; shapes are (batch, channels or width, time)."""
    known: list[Case] = list(bench.peers.get(part, []))
    if part == "conv":
        shapes = [[1, 128, 958464], [16, 256, 4000], [8, 2048, 2048]]
        kinds = "time contiguous", "channels contiguous"
        known = [{"name": kind, "shape": shape} for shape in shapes for kind in kinds]
    elif part == "lti":
        known += [{"name": "S4", "shape": [4, 64, 65536], "d_state": 64, "gate": False}]
    elif part == "length":
        recorded = {tuple(x["shape"]): {"peer_ms": x["peer_ms"]} for x in bench.peers["scan"]}
        shapes = [[1, 1024, 1 << k] for k in range(9, 21)]
        known = [{"name": "length", "shape": x} | recorded.get(tuple(x), {}) for x in shapes]
    elif part == "block":
        known = [*known, {"name": "time-invariant, complex", "shape": known[0]["shape"]}]
    if not bench.smoke:
        return known
    few = known[:1] + known[1:][-1:]
    tiny = [1, 64] if part == "length" else [2, 8]
    return [case | {"shape": [*tiny, 32 * (i + 1)]} for i, case in enumerate(few)]


def free() -> None:
    """Give a GPU's memory back; a device that an error has put out of order cannot."""
    if not torch.cuda.is_available():
        return
    with suppress(RuntimeError):
        gc.collect()
        torch.cuda.empty_cache()


def seconds(call: Call) -> float:
    """Return how long one call takes, to its end on the device."""
    began = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default: results, a temporary one for --smoke"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on the CPU")
    parser.add_argument("--table", type=Path, metavar="RESULT.json", help="print it as Markdown")
    flags = parser.parse_args()
    if flags.table:
        print(table(json.loads(flags.table.read_text())))
        return
    began = time.perf_counter()
    bench = Bench(flags.smoke)
    record = bench.record
    slug = re.sub(r"[^a-z0-9]+", "_", record["device"].lower())
    out = flags.out or (Path(tempfile.mkdtemp()) if flags.smoke else HERE / "results")
    out.mkdir(parents=True, exist_ok=True)
    path = out / ("_".join(["kernels", slug, *(flags.only or [])]) + ".json")
    copy(bench)
    for part in flags.only or PARTS:
        for case in cases(bench, part):
            for which in range(1 if part == "length" else 2):
                bench.label = f"{part}, {case['name']} {case['shape']}, {PASSES[which]}"
                with bench.case(bench.label):
                    bench.add(part, case, which, PARTS[part](bench, case, which))
        if part == "length":
            try:
                plot(record, path.with_suffix(".png"))
            except ModuleNotFoundError as error:
                record["skipped"]["plot"] = str(error)
                say(f"no plot: {error}")
        record["seconds"] = time.perf_counter() - began
        with replacing(path) as partial:  # after each, so that a run cut short leaves something
            partial.write_text(json.dumps(record, indent=2) + "\n")
    say(f"\n{table(record)}\n\n{path}: {record['seconds']:.0f} s")
    for label, error in record["errors"].items():
        say(f"FAILED {label}: {error}")
    raise SystemExit(1 if record["errors"] else 0)


if __name__ == "__main__":
    main()
