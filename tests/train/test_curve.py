from audiomamba.train_curve import plot_curves, read_curves

TABLES = {
    9: "step,train/bits_per_sample,validation/bits_per_sample\n50,4.5,\n100,4,\n100,,3.9\n150,3,\n",
    10: "step,train/bits_per_sample,other\n150,3.25,1\n200,3.0,\n",
}


def test_the_later_leg_of_a_run_counts(tmp_path):
    for version, table in TABLES.items():
        folder = tmp_path / "logs" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(table)
    curves = read_curves(tmp_path)
    assert curves == {
        "train": [(50, 4.5), (100, 4.0), (150, 3.25), (200, 3.0)],
        "validation": [(100, 3.9)],
    }
    plot_curves(curves, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_of_a_run_that_was_started_anew_nothing_before_counts(tmp_path):
    tables = {0: TABLES[9], 1: "step,train/bits_per_sample\n50,7\n", 2: "step\n"}
    for version, table in tables.items():
        folder = tmp_path / "logs" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(table)
    assert read_curves(tmp_path) == {"train": [(50, 7.0)], "validation": []}


def test_a_run_without_logs_has_empty_curves(tmp_path):
    assert read_curves(tmp_path) == {"train": [], "validation": []}
    plot_curves(read_curves(tmp_path), tmp_path / "curves.png")
