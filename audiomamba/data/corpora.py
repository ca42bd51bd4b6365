"""The corpora of the published experiments, each as a folder that `prepare` takes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from audiomamba.data.download import check_new, download, extract

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

SPEECH_COMMANDS = "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz"
SPEECH_COMMANDS_SHA256 = "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"


def fetch_sc09(folder: str | os.PathLike[str], *, progress: bool = True) -> Path:
    """Fetch SC09: the ten digits of Speech Commands v0.02, with its official lists.

    The archive has 2.4 GB. It is kept beside the folder, as FOLDER.archive, until it is unpacked.

    Args:
        folder: Must not exist, or be empty.
        progress: Show a bar, on a terminal.

    Returns:
        The folder: a folder of clips for each word, validation_list.txt and testing_list.txt.

    Raises:
        FileExistsError: If the folder holds anything.
        OSError: If the archive cannot be had (see `download`).
        ValueError: If it is not the published one.

    Source: Warden 2018, arXiv 1804.03209, CC BY 4.0; address and sum as in torchaudio.
    """
    folder = Path(folder)
    check_new(folder)
    archive = folder.with_name(f"{folder.name}.archive")
    download(SPEECH_COMMANDS, archive, sha256=SPEECH_COMMANDS_SHA256, progress=progress)
    extract(archive, folder, keep=lambda path: len(path.parts) == 1 or path.parts[0] in DIGITS)
    archive.unlink()
    return folder


def fetch_youtubemix(folder: str | os.PathLike[str], *, progress: bool = True) -> Path:
    """Fetch YouTubeMix: four hours of piano in 241 clips of a minute, for academic use.

    `prepare` splits them by position into the published 212, 14 and 15.

    Args:
        folder: Must not exist, or be empty.
        progress: Show a bar, on a terminal.

    Raises:
        FileExistsError: If the folder holds anything.
        PermissionError: If the Hub grants no access; says how to get it.
        OSError: If it cannot be had for another reason.

    Source: Goel et al. 2022 (SaShiMi), https://huggingface.co/datasets/krandiash/youtubemix.
    """
    return _fetch_from_hub("krandiash/youtubemix", Path(folder), progress=progress)


def fetch_beethoven(folder: str | os.PathLike[str], *, progress: bool = True) -> Path:
    """Fetch Beethoven: ten hours of piano sonatas in 4328 clips of eight seconds.

    `prepare` splits them by position into the published 3808, 260 and 260. Published results are
    of the "linear" encoding.

    Args:
        folder: Must not exist, or be empty.
        progress: Show a bar, on a terminal.

    Raises:
        FileExistsError: If the folder holds anything.
        OSError: If it cannot be had.

    Source: Goel et al. 2022 (SaShiMi), https://huggingface.co/datasets/krandiash/beethoven.
    """
    return _fetch_from_hub("krandiash/beethoven", Path(folder), progress=progress)


def _fetch_from_hub(repository: str, folder: Path, *, progress: bool) -> Path:
    """Unpack the one archive of a dataset, which stays in the Hub's cache."""
    from huggingface_hub import get_token, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    check_new(folder)
    if not progress or not sys.stderr.isatty():
        disable_progress_bars()
    try:
        snapshot = snapshot_download(repository, repo_type="dataset", allow_patterns="*.zip")
    except (AssertionError, AttributeError, NameError, TypeError):  # a mistake of the program
        raise
    except Exception as error:  # of the network's libraries too, which derive from nothing common
        if any(_status(cause) in (401, 403) for cause in (error, error.__cause__)):
            reason = "your token has no access" if get_token() else "you are not logged in"
            raise PermissionError(
                f"the Hugging Face Hub refuses the dataset {repository} ({reason}): ask for access "
                f"at https://huggingface.co/datasets/{repository}, then `hf auth login` or set "
                "HF_TOKEN; or train on any other folder of audio: audiomamba prepare FOLDER TOKENS"
            ) from error
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise OSError(f"{repository} cannot be had from the Hugging Face Hub: {reason}") from error
    archives = list(Path(snapshot).glob("*.zip"))
    if len(archives) != 1:
        raise OSError(
            f"{repository} holds {len(archives)} zip archives on the Hugging Face Hub, not one; "
            "fetch its recordings by hand and prepare their folder"
        )
    return extract(archives[0], folder)


def _status(error: BaseException | None) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)
