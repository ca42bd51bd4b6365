from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from audiomamba import recipe_results
from audiomamba.recipe_results import RESULTS, append_result, read_results


def test_results_stay_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    assert read_results(tmp_path / "new" / "folder") == []
    for seed in (1, 0):
        append_result(tmp_path / "new" / "folder", {"seed": seed})
    assert read_results(tmp_path / "new" / "folder") == [{"seed": 1}, {"seed": 0}]


def test_results_that_are_added_at_once_are_all_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(out: Path) -> list[dict[str, Any]]:
        results = read_results(out)
        time.sleep(0.01)  # in which another might write
        return results

    monkeypatch.setattr(recipe_results, "read_results", slow)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: append_result(tmp_path, {"seed": seed}), range(8)))
    assert sorted(x["seed"] for x in read_results(tmp_path)) == [*range(8)]


def test_a_result_that_cannot_be_written_leaves_the_others(tmp_path: Path) -> None:
    append_result(tmp_path, {"seed": 0})
    before = (tmp_path / RESULTS).read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        append_result(tmp_path, {"seed": object()})
    assert (tmp_path / RESULTS).read_bytes() == before
