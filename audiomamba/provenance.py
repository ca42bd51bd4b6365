"""What made a result: the command, the commit, the device, the versions."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from audiomamba import __version__

ROOT = Path(__file__).resolve().parent.parent


def provenance(
    device: str | torch.device = "cpu",
    *,
    packages: Sequence[str] = (),
    arguments: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return what made a result, for the JSON that holds it.

    Args:
        device: On which it was computed.
        packages: Whose versions to add to those of Python, PyTorch and audiomamba.
        arguments: Of the command; None takes those of the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    return {
        "command": shlex.join([*_launcher(), _program(), *arguments]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": commit(),
        "device": device_name(device),
        "versions": versions(*packages),
    }


def _launcher() -> list[str]:
    """Return what starts this process, and those beside it if torchrun does."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ["python"]
    return ["torchrun", "--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"]]


def _program() -> str:
    """Return the script that runs, as it lies in this repository where it is there."""
    path = Path(sys.argv[0]).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else sys.argv[0]


def commit() -> str | None:
    """Return the commit of this file's repository, with "-dirty" if its files have changed since.

    Files that it does not hold, such as what was generated there, do not count. A copy of the tree
    has no repository; there it is what AUDIOMAMBA_COMMIT says, or None. A repository further up,
    such as one that holds a virtual environment, is another's.
    """
    if not (ROOT / ".git").exists():
        return os.environ.get("AUDIOMAMBA_COMMIT") or None

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (
            "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None


def device_name(device: str | torch.device) -> str:
    """Return the name of a GPU, or else of the CPU."""
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def cpu_name() -> str:
    """Return the model of the CPU, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions(*packages: str) -> dict[str, str | None]:
    """Return the versions of Python, PyTorch, audiomamba and other packages, None if not there."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "audiomamba": __version__,
        **{name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
