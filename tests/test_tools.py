"""What benchmark and report compute, by small records with results found by hand."""

import dataclasses
import math

import benchmark
import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
import report
import speed
from benchmark import ABLATION, Run, find
from notebook import cell_of, code_that_trains, fingerprint, read_notebook, run_cells


def record_of(name, seed, accuracy, fold=None, **others):
    """Return what is stored of a run, as far as the tables read it."""
    record = {"name": name, "seed": seed, "accuracy": accuracy, "fold": fold}
    record |= {"recipe": "assignment", "epochs": 20, "filters": [1, 2]}
    return record | {"label_smoothing": 0.1, "loss": 0.5, "parameters": 14_720} | others


def rows_of(table):
    """Return the cells of a Markdown table below its head, row by row."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_an_effect_is_bold_if_its_interval_excludes_zero():
    # Student's t for 95% and three values is 4.303: 4.303 * 0.1 / sqrt(3) = 0.248.
    assert report.effect([0.1, 0.2, 0.3], 3) == "+0.200 ± 0.248"
    assert report.effect([-0.3, -0.4, -0.2], 2) == "**-0.30 ± 0.25**"


def test_the_tables_of_seeds_and_rules():
    values = {0: 0.993, 1: 0.994, 20: 0.9955, 21: 0.9965}
    records = [record_of("assignment", *value) for value in values.items()]
    records += [record_of("as it is", 0, 0.5, fold=0)]
    fresh = "2", "99.600 ± 0.071, worst 99.55"
    assert rows_of(report.seeds_table(records)) == [
        ["`assignment`", "14,720", "20", "2", "99.350 ± 0.071, worst 99.30", *fresh],
    ]
    run = {"accuracy": 0.5, "settings": {"epochs": 20}}
    rules = [row[2] for row in rows_of(report.rules_table(run, records))]
    accuracy = "**50.00%** in the stored run; "
    accuracy += "**99.35 ± 0.07%** (mean ± deviation) of 2 seeds"
    assert rules == [accuracy, "14,720", "20", "none", "none"]


def test_the_table_of_choices_compares_the_same_seed_and_fold():
    records = [
        record_of("assignment", 0, 0.5),
        record_of("as it is", 0, 0.990, 0, loss=0.50),
        record_of("as it is", 0, 0.980, 1, loss=0.52),
        record_of("ReLU", 0, 0.991, 0, loss=0.51),
        record_of("ReLU", 0, 0.980, 1, loss=0.55),
        record_of("no smoothing", 0, 0.985, 0, label_smoothing=0.0),
        record_of("no smoothing", 0, 0.965, 1, label_smoothing=0.0),
    ]
    table = report.choices_table(records)
    assert rows_of(table) == [  # half an interval is 12.706 times that of the values
        ["no smoothing", "-1.000 ± 6.353", "", "2"],
        ["ReLU", "+0.050 ± 0.635", "+0.0200 ± 0.1271", "2"],
    ]
    assert "\n\nUnchanged: 98.50 ± 0.71% of the images held out" in table


def test_the_table_of_other_widths():
    small = {"filters": [5, 8], "parameters": 702}
    records = [
        record_of("other widths", seed, 0.99 + seed / 1e3, **small) for seed in (0, 1)
    ]
    records += [record_of("assignment", seed, 0.996 + seed / 1e4) for seed in (2, 4, 5)]
    compact = {"recipe": "compact", "parameters": 1_982}
    records += [record_of("compact", seed, 0.994, **compact) for seed in (3, 4)]
    assert rows_of(report.frontier_table(records)) == [  # seed 5 is not in
        ["`assignment`", "702", "`[5, 8]`", "2", "99.05 ± 0.07", "99.00"],
        ["`assignment`", "14,720", "`[1, 2]`", "2", "99.63 ± 0.01", "99.62"],
        ["`compact`", "1,982", "`[1, 2]`", "2", "99.40 ± 0.00", "99.40"],
    ]
    assert " more has 1,982" in report.smallest(records)


@pytest.mark.parametrize("accuracy, reach", [(0.996, "1"), (0.9961, "None")])
def test_the_figure_counts_the_public_networks_that_reach_our_mean(accuracy, reach):
    axis = plt.figure().subplots()
    records = [record_of("assignment", seed, accuracy) for seed in (0, 1)]
    report.plot_comparison(axis, records)
    title = f"{reach} of the 16 small public networks reach our mean"
    assert axis.get_title() == title


def test_the_log():
    history = {"loss": [0.77621], "accuracy": [0.9095], "val_loss": [0.5871]}
    head, line = report.log(history | {"val_accuracy": [0.98466]}).splitlines()[1:-1]
    assert line.split() == ["1", "0.7762", "90.95%", "0.5871", "98.47%"]
    assert len(head) == len(line) <= 44


def test_what_is_of_other_code_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "SPEED", tmp_path / "speed.json")
    monkeypatch.setattr(benchmark, "STORE", tmp_path / "benchmark.jsonl")
    report.SPEED.write_text('{"fingerprint": "0"}')
    notebook, other = read_notebook(), read_notebook()
    notebook.metadata["code9"]["fingerprint"] = "0"
    report.source.find_record(other)["settings"]["seed"] = 1
    with pytest.raises(LookupError, match="run tests/tools/speed"):
        report.stored_times()
    with pytest.raises(LookupError, match="run tests/tools/benchmark"):
        benchmark.whole_records()
    for stale in (notebook, other):
        with pytest.raises(LookupError, match=r"run report.py --run"):
            report.stored_run(stale)


def test_times_and_the_fastest_training_that_is_accurate_enough():
    ours = {"epochs": 2, "seconds": 9.96, "settings": "s"}
    theirs = ours | {"epochs": 10, "seconds": 25, "accuracies": [0.989, 0.993]}
    timed = {"quick": ours, "assignment": ours | {"seconds": 20}, "them": theirs}
    times = {"machine": "m", "load": 0.1, "repeats": 2, "timed": timed}
    records = [
        record_of(name, seed, 0.994)
        for name in ("assignment", "quick")
        for seed in (0, 1, 20, 21)
    ]
    assert rows_of(report.peers_table(times, records))[::2] == [
        ["quick", "2", "10.0", "5.0", "99.400 ± 0.000 (n = 2)", "s"],
        ["them", "10", "25.0", "2.5", "99.100 ± 0.283 (n = 2)", "s"],
    ]
    assert "quick: 10 s" in report.fastest(times, records)
    records[-1]["accuracy"] = 0.9939
    text = report.fastest(times, records)
    assert "assignment: 20 s" in text
    assert "them takes 1.2 times as long (10 epochs, to 99.10%, n = 2)" in text


def test_the_public_networks_have_the_published_numbers_of_parameters():
    eip4, eva4 = (
        keras.Sequential([keras.Input((28, 28, 1)), *build(100)[0]])
        for build, _, _ in speed.PEERS.values()
    )
    assert eip4.count_params() == 13_050
    assert sum(math.prod(v.shape) for v in eva4.trainable_variables) == 8_464


def test_a_record_of_another_run_is_refused():
    edits = ABLATION["ReLU instead of SiLU"][1]
    run = Run("ReLU", "assignment", 3, {"rotation": 5.0}, 0, edits)
    record = run.key() | {"accuracy": 0.99}
    assert find(run, [{"name": "ReLU"}, record]) is record
    changes = {"name": "SiLU", "recipe": "quick", "seed": 4, "overrides": {}}
    changes |= {"fold": None, "edits": {}}
    for field, value in changes.items():
        assert find(dataclasses.replace(run, **{field: value}), [record]) is None
    assert find(dataclasses.replace(run, fold=1), [record]) is None


@pytest.mark.parametrize("trains, old, new", [
    (False, "# for speed alone", "# another comment"),
    (False, "give 0 to", "take 0 to"),
    (False, "figsize=(7, 4)", "figsize=(8, 5)"),
    (True, "momentum=0.9,\n        rms", "momentum=0.8,\n        rms"),
    (True, '"TF_NUM_INTRAOP_THREADS": "1"', '"TF_NUM_INTRAOP_THREADS": "2"'),
    (True, "images[count:], labels[count:]", "images[:count], labels[:count]"),
    (False, "steps=1_000", "steps=2_000"),  # of a figure
    (True, 'set_floatx("float32")', 'set_floatx("float16")'),
    (True, 'history["val_accuracy"][-1]', 'max(history["val_accuracy"])'),
    (True, "partial(layers.BatchNormalization, momentum=0.9)", "layers.Layer"),
])  # fmt: skip
def test_the_fingerprint_is_of_the_code_that_trains(trains, old, new):
    changed = code_that_trains(read_notebook(edits={old: new}))
    assert (changed != code_that_trains(read_notebook())) == trains


def test_the_fingerprint_is_not_of_the_cells_that_hold_the_code():
    notebook = read_notebook()
    optimizer, learner = (cell_of(notebook, name) for name in ("optimizer", "learner"))
    optimizer.source, learner.source = learner.source, optimizer.source
    assert code_that_trains(notebook) == code_that_trains(read_notebook())


@pytest.mark.parametrize("name", ABLATION)
def test_each_change_runs_to_the_end(name, small_data, monkeypatch):
    """Two steps on 576 images; the 64 before the last 64 are held out."""
    overrides, edits = ABLATION[name]
    few_steps = {"epochs": 2, "batch_size": 288}
    run = Run(name, "assignment", 1, overrides | few_steps, 1, edits)
    monkeypatch.setattr(benchmark, "DATA", small_data)
    monkeypatch.setattr(benchmark, "HOLDOUT", 64)
    record = run.train()
    assert find(run, [record]) is record
    assert (record["training_images"], record["evaluation_images"]) == (576, 64)
    code = fingerprint(edits=tuple(edits.items()))
    assert (code == fingerprint()) == (not edits)


def test_the_benchmark_makes_what_is_missing_once(tmp_path, monkeypatch):
    """In a process of its own: three steps of a small network on the whole MNIST."""
    run = Run("small", "quick", 3, {"filters": [1] * 5, "batch_size": 20_000})
    monkeypatch.setattr(benchmark, "STORE", tmp_path / "benchmark.jsonl")
    monkeypatch.setattr(benchmark, "all_runs", lambda: [run])
    monkeypatch.setattr("sys.argv", ["benchmark.py"])
    for _ in range(2):
        benchmark.main()
        assert len(benchmark.read_records()) == len(benchmark.whole_records()) == 1


def test_a_fold_holds_out_other_images(small_data, mnist, monkeypatch):
    monkeypatch.setattr(benchmark, "HOLDOUT", 64)
    for fold, first in ((0, 576), (1, 512)):
        edits = Run("", "assignment", 0, {}, fold).all_edits()
        cells = run_cells("split", edits=edits, data_path=str(small_data), holdout=64)
        held_out = mnist["y_train"][first : first + 64]
        assert np.array_equal(cells["valid_labels"], held_out)
        assert len(cells["x_train"]) == 576
