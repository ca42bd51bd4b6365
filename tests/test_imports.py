from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import audiomamba

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "audiomamba": ROOT / "audiomamba",
    "audiomamba_kernels": ROOT / "kernels/audiomamba_kernels",
}
TRAINING = ["audiomamba.train", "audiomamba.train_module"]  # alone import lightning
EXTRAS = {"librosa", "lightning", "matplotlib", "speechbrain", "torchaudio", "transformers"}
# Classes that derive from an extra's, and so need it when they are imported.
DERIVED = {"audiomamba.adapters.for_transformers": "transformers"}

# Each unit imports itself and what stands above it here; a unit is a file or a folder.
ORDER = [
    {"audiomamba_kernels", "audiomamba.files", "audiomamba.provenance"},
    {
        "audiomamba.audio",
        "audiomamba.features",
        "audiomamba.flags",
        "audiomamba.progress",
        "audiomamba.saved_header",
        "audiomamba.state",
        "audiomamba.waveform",
    },
    {"audiomamba.tokenizer"},
    {"audiomamba.config"},
    {"audiomamba.encoder_config"},
    {"audiomamba.layers"},
    {"audiomamba.models"},
    {
        "audiomamba.checkpoint",
        "audiomamba.data",
        "audiomamba.drift",
        "audiomamba.gallery",
        "audiomamba.output",
        "audiomamba.play",
        "audiomamba.plot",
    },
    {
        "audiomamba.baselines",
        "audiomamba.encoder",
        "audiomamba.engine.philox",
        "audiomamba.evaluate",
    },
    {"audiomamba.adapters", "audiomamba.classifier", "audiomamba.sampling"},
    {"audiomamba.engine"},
    {"audiomamba.guard"},
    {"audiomamba.arguments"},
    {"audiomamba.generate"},
    {"audiomamba.saved"},
    {"audiomamba.session"},
    {"audiomamba.audiomodel"},
    {"audiomamba.loading", "audiomamba.words"},
    {
        "audiomamba.doctor",
        "audiomamba.encode",
        "audiomamba.objective",
        "audiomamba.optim",
        "audiomamba.train_config",
    },
    {
        "audiomamba.resume",
        "audiomamba.train_folder",
        "audiomamba.train_listen",
        "audiomamba.train_curve",
    },
    {"audiomamba.export", "audiomamba.train_log", "audiomamba.train_stop"},
    {"audiomamba.train_module"},
    {"audiomamba.recipe_results", "audiomamba.train"},
    {"audiomamba.recipe"},
    {"audiomamba.commands"},
    {"audiomamba.cli"},
    {"audiomamba.__main__"},
]
RANK = {unit: rank for rank, units in enumerate(ORDER) for unit in units}


def modules() -> Iterator[tuple[str, Path]]:
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join((package, *parts)).removesuffix(".__init__"), path


NAMES = dict(modules())


def unit(module: str) -> str:
    """Return the longest unit that holds a module, or the module itself if none does."""
    parts = module.split(".")
    names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((name for name in names if name in RANK), module)


def imports(path: Path, *, nested: bool = True) -> Iterator[str]:
    """Yield what a file imports; of the package itself only names other than its version."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if nested else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by a relative name"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if name != "audiomamba.__version__":
                    yield name if name in NAMES else str(node.module)


@pytest.mark.parametrize("module", [name for name in NAMES if name != "audiomamba"])
def test_imports_point_down_only(module: str) -> None:
    mine = unit(module)
    assert mine in RANK, f"{module} has no place in ORDER"
    for name in imports(NAMES[module]):
        if name == "audiomamba":
            assert mine in ("audiomamba.commands", "audiomamba.cli"), (
                f"{module} imports the package above it"
            )
        elif name.split(".")[0] in PACKAGES and unit(name) != mine:
            assert unit(name) in RANK, f"{module} imports {name}, which is not there"
            assert RANK[unit(name)] < RANK[mine], f"{module} imports {name}"


def test_lightning_is_imported_in_two_files() -> None:
    users = [
        module
        for module, path in NAMES.items()
        if any(name.split(".")[0] in ("lightning", "pytorch_lightning") for name in imports(path))
    ]
    assert users == TRAINING


def test_extras_are_imported_where_they_are_used() -> None:
    for module, path in NAMES.items():
        if module not in TRAINING:
            found = {name.split(".")[0] for name in imports(path, nested=False)} & EXTRAS
            found -= {DERIVED.get(module)}
            assert not found, f"{module} imports {found} when it is imported"


def test_no_package_is_called_kernels() -> None:
    # It would shadow Hugging Face's package of that name and break `import transformers`.
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "tests" / "kernels" / "__init__.py").exists()


def loaded_by(code: str) -> set[str]:
    """Return the top-level packages that are loaded after running code in a fresh interpreter."""
    code += "\nimport json, sys; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


RUN = """
import sys
sys.path.insert(0, "kernels")
from audiomamba.cli import main
def run(*arguments):
    try:
        main(arguments)
    except SystemExit as stop:
        assert not stop.code, stop.code
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["generate", "--help"], ["encode", "--help"]]
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    heavy = {"huggingface_hub", "numba", "numpy", "soundfile", "torch", *EXTRAS}
    assert not loaded_by(f"{RUN}\nrun(*{arguments!r})") & heavy


def test_help_answers_in_half_a_second() -> None:
    def seconds() -> float:
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "audiomamba", "--help"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        return time.perf_counter() - began

    assert min(seconds() for _ in range(5)) < 0.5


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_by("import audiomamba") & {"click", "numba", "numpy", "torch", *EXTRAS}


def test_the_tokenizer_and_audio_files_need_no_torch() -> None:
    code = """
import numpy as np
import audiomamba, audiomamba.audio, audiomamba.data
tokenizer = audiomamba.Tokenizer()
tokenizer.decode(tokenizer.encode(np.zeros(3)))
"""
    assert not loaded_by(code) & {"numba", "torch", *EXTRAS}


def test_generating_loads_no_extra(tmp_path: Path) -> None:
    code = f"""{RUN}
import types
import numpy as np
import audiomamba, audiomamba.audiomodel
class StandIn:
    name, sample_rate, weights_sha256, engine, temperature = "x", 16000, "", "numba", 1.0
    weights, guard, words = None, False, None
    def warm_up(self, notify):
        notify()
    def generate_each(self, samples, **options):
        yield types.SimpleNamespace(
            index=0,
                waveform=np.zeros(samples, np.float32),
                bits_per_sample=8.0,
                rewinds=None,
        )
    def read(self, pieces, notify):
        return list(pieces)
audiomamba.load = lambda name, **options: StandIn()
run("generate", "-o", {str(tmp_path)!r}, "--seed", "1")
run("generate", "-o", {str(tmp_path)!r}, "--prompt", {str(tmp_path / "x_1_0.wav")!r})
"""
    assert not loaded_by(code) & EXTRAS
    assert len(list(tmp_path.iterdir())) == 4


def test_every_module_imports_without_the_extras() -> None:
    names = [name for name in NAMES if name not in ("audiomamba.__main__", *TRAINING, *DERIVED)]
    code = f"""
import importlib, sys
sys.path.insert(0, "kernels")
sys.modules.update(dict.fromkeys({sorted(EXTRAS)!r}))
for name in {names!r}:
    importlib.import_module(name)
"""
    loaded_by(code)


def test_the_public_names_are_there() -> None:
    assert set(audiomamba.__all__) <= set(dir(audiomamba))
    for name in audiomamba.__all__:
        assert getattr(audiomamba, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = audiomamba.nothing
