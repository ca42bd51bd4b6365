import json
import re
import subprocess
import sys

import pytest
import torch

from audiomamba import __version__, provenance


def git(folder, *arguments):
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(
        ["git", *name, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.delenv("AUDIOMAMBA_COMMIT", raising=False)
    return tmp_path


def test_the_commit_is_that_of_the_files(root, monkeypatch):
    git(root, "init", "-q")
    (root / "a").write_text("1")
    git(root, "add", "a")
    git(root, "commit", "-q", "-m", "a")
    head = git(root, "rev-parse", "HEAD")
    git(root, "tag", "-a", "v1", "-m", "v1")
    assert provenance.commit() == head
    (root / "a").write_text("2")
    assert provenance.commit() == f"{head}-dirty"
    (root / "a").write_text("1")
    (root / "b").write_text("1")  # generated there, say
    assert provenance.commit() == head
    (root / "site-packages").mkdir()
    monkeypatch.setattr(provenance, "ROOT", root / "site-packages")
    assert provenance.commit() is None


def test_without_a_repository_the_commit_may_be_told(root, monkeypatch):
    assert provenance.commit() is None
    monkeypatch.setenv("AUDIOMAMBA_COMMIT", "0123abc")
    assert provenance.commit() == "0123abc"


def test_a_result_says_what_made_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recipe.py", "--out", "a b"])
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    made = provenance.provenance(packages=["numpy", "nothing-of-this-name"])
    assert json.loads(json.dumps(made)) == made
    assert made["command"] == "python recipe.py --out 'a b'"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", made["date"])
    assert made["device"]
    assert made["versions"]["torch"] == torch.__version__
    assert made["versions"]["audiomamba"] == __version__
    assert made["versions"]["numpy"]
    assert made["versions"]["nothing-of-this-name"] is None
    monkeypatch.setattr(sys, "argv", [str(provenance.ROOT / "recipes" / "sc09.py")])
    assert provenance.provenance()["command"] == "python recipes/sc09.py"
    monkeypatch.setattr(sys, "argv", ["recipe.py"])
    again = provenance.provenance(arguments=["--steps", "1"])
    assert again["command"] == "python recipe.py --steps 1"


@pytest.mark.gpu
def test_a_gpu_has_its_name():
    assert provenance.device_name("cuda") == torch.cuda.get_device_name()


def test_the_command_of_several_processes_is_torchrun_s(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recipe.py"])
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert provenance.provenance()["command"] == "torchrun --nproc-per-node 2 recipe.py"
