"""What benchmark and report compute, by small records with results found by hand."""

import dataclasses
import math

import benchmark
import keras
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import report
import speed
from benchmark import ABLATION, PAIRS, Run, find
from notebook import code_that_trains, fingerprint, read_notebook, run_cells


def record_of(run, accuracy, loss=0.5, parameters=14_720):
    """Return what is stored of a run, as far as the tables read it."""
    measured = {"accuracy": accuracy, "loss": loss, "parameters": parameters}
    return {"name": run.name, "fold": run.fold} | run.key() | measured


def changed(name, seed, fold):
    """Return the run of a change of the ablation."""
    overrides, edits = ABLATION[name]
    return Run(name, "assignment", seed, overrides, fold, edits)


def rows_of(table):
    """Return the cells of a Markdown table below its head, row by row."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_an_effect_is_bold_if_its_interval_excludes_zero():
    # Student's t for 95% and three values is 4.303: 4.303 * 0.1 / sqrt(3) = 0.248.
    assert report.effect([0.1, 0.2, 0.3], 3) == "+0.200 ± 0.248"
    assert report.effect([-0.3, -0.4, -0.2], 2) == "**-0.30 ± 0.25**"
    assert report.effect([0.1], 3) == "+0.100"
    assert report.effect([0.1, 0.1], 2) == "+0.10 ± 0.00"  # two can be equal by chance


def test_the_tables_of_seeds_and_rules():
    runs = [Run("assignment", "assignment", seed) for seed in (0, 1, 20)]
    records = list(map(record_of, runs, (0.993, 0.994, 0.9955)))
    ten = "2", "99.350 ± 0.071, worst 99.30"
    assert rows_of(report.seeds_table(records)) == [
        ["`assignment`", "14,720", "20", *ten, "1", "99.550, worst 99.55"],
    ]
    rules = [row[2] for row in rows_of(report.rules_table({"accuracy": 0.99}, records))]
    accuracy = "**99.00%** in the stored run; **99.35 ± 0.07%** over 2 seeds"
    assert rules == [accuracy, "14,720", "20", "none", "none"]
    assert rows_of(report.rules_table(None, []))[0][2] == report.not_yet()


def test_the_table_of_choices_compares_the_same_seed_and_fold():
    values = {
        "as it is": [(0.99, 0.50), (0.98, 0.52)],
        "ReLU instead of SiLU": [(0.991, 0.51), (0.979, 0.53), (0.5, 0.9)],
        "no label smoothing": [(0.985, 0.1), (0.975, 0.1)],
        "a constant learning rate": [(0.98, 0.56)],
        report.PLAIN: [(0.989, 0.2), (0.979, 0.3)],
    }
    records = [
        record_of(changed(name, *place), *value)
        for name, pairs in values.items()
        for place, value in zip(PAIRS, pairs, strict=False)
    ]
    table = report.choices_table(records)
    assert rows_of(table) == [  # 12.706 * 0.1 = 1.271 is half the interval of ±0.1
        [report.PLAIN, "-0.100 ± 0.000", "", "2"],
        ["a constant learning rate", "-1.000", "+0.0600", "1"],
        ["no label smoothing", "-0.500 ± 0.000", "", "2"],
        ["ReLU instead of SiLU", "+0.000 ± 1.271", "+0.0100 ± 0.0000", "2"],
    ]
    assert "\n\nUnchanged: 98.50 ± 0.71% of" in table
    assert table.endswith("(mean ± standard deviation, n = 2).")
    assert report.choices_table(records[2:]) == report.not_yet()


def test_the_table_of_other_widths():
    runs = benchmark.frontier_runs()
    small = [run for run in runs if run.overrides["filters"][1] == 8 and run.seed < 2]
    whole = [Run("assignment", "assignment", seed) for seed in (0, 9)]
    compact = Run("compact", "compact", 4)
    records = [record_of(run, 0.99 + run.seed / 1e3, parameters=702) for run in small]
    records += [record_of(run, 0.996) for run in whole]
    records += [record_of(compact, 0.995, parameters=1_982)]
    text = report.frontier_table(records)
    assert report.smallest(records).endswith(" over 5 seeds has 1,982 parameters.")
    assert report.smallest(records[:2]) == report.not_yet()
    assert rows_of(text) == [  # seed 9 is not in
        ["`assignment`", "702", "`[5, 8, 9, 9, 10]`", "2", "99.05 ± 0.07", "99.00"],
        ["`assignment`", "14,720", "`[16, 32, 56, 72, 72]`", "1", "99.60", "99.60"],
        ["`compact`", "1,982", "`[9, 17, 17, 17, 18]`", "1", "99.50", "99.50"],
    ]
    assert report.frontier_table([]) == report.not_yet()


@pytest.mark.parametrize("accuracy, title", [
    (0.996, "1 of 16 small public networks end at our mean or above"),
    (0.9961, "Our mean is above the 16 small public networks shown"),
    (None, "16 public networks have fewer than 15,000 parameters"),
])  # fmt: skip
def test_the_figures_are_drawn_of_few_records_too(accuracy, title):
    run, axis = Run("assignment", "assignment", 0), plt.figure().subplots()
    report.plot_comparison(axis, [record_of(run, accuracy)] if accuracy else [])
    assert axis.get_title() == title
    run = Run("as it is", "assignment", 0, fold=0)
    assert report.drawn(report.plot_ablation, [record_of(run, accuracy or 0)])


def test_the_log_and_the_stored_run():
    history = {"loss": [0.77621], "accuracy": [0.9095], "val_loss": [0.5871]}
    head, line = report.log(history | {"val_accuracy": [0.98466]}).splitlines()[1:-1]
    assert line.split() == ["1", "0.7762", "90.95%", "0.5871", "98.47%"]
    assert len(head) == len(line) <= 44
    assert report.stored_run(nbformat.v4.new_notebook()) is None


def test_the_table_of_times(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "SPEED", tmp_path / "speed.json")
    assert report.stored_times() is None
    report.SPEED.write_text('{"fingerprint": "0"}')
    assert report.stored_times() is None
    ours = {"epochs": 1, "seconds": 9.96, "settings": "s"}
    theirs = ours | {"epochs": 10, "seconds": 25, "accuracies": [0.993, 0.995]}
    times = {"machine": "m", "load": 0.1, "repeats": 2}
    times |= {"timed": {"quick": ours, "them": theirs}}
    text = report.peers_table(times, [record_of(Run("quick", "quick", 0), 0.994)])
    assert rows_of(text) == [
        ["quick", "1", "10.0", "10.0", "99.400 (n = 1)", "s"],
        ["them", "10", "25.0", "2.5", "99.400 ± 0.141 (n = 2)", "s"],
    ]


def test_only_a_training_that_is_accurate_enough_is_called_faster():
    timed = {"quick": {"seconds": 5}, "assignment": {"seconds": 10}}
    them = {"seconds": 25, "accuracies": [0.99, 0.992], "epochs": 3}
    times = {"timed": timed | {"them": them}}
    whole, quick = (
        [record_of(Run(name, name, seed), 0.994) for seed in (0, 20)]
        for name in ("assignment", "quick")
    )
    assert "quick: 5 s" in report.fastest(times, whole + quick)
    quick[1]["accuracy"] = 0.9939  # of the fresh seeds
    text = report.fastest(times, whole + quick)
    assert "assignment: 10 s" in text
    assert "them takes 2.5 times as long (3 epochs, to 99.10%)" in text
    assert report.fastest(times, whole[:1] + quick).startswith("None")


def test_the_public_networks_have_the_published_numbers_of_parameters():
    eip4, eva4 = (
        keras.Sequential([keras.Input((28, 28, 1)), *build(100)[0]])
        for build, _, _ in speed.PEERS.values()
    )
    assert eip4.count_params() == 13_050
    assert sum(math.prod(v.shape) for v in eva4.trainable_variables) == 8_464


def test_a_record_of_another_run_is_refused():
    edits = dict(ABLATION["ReLU instead of SiLU"][1])
    run = Run("ReLU", "assignment", 3, {"rotation": 5.0}, 0, edits)
    record = record_of(run, 0.99)
    assert find(run, [{"name": "ReLU"}, record]) is record
    changes = {"name": "SiLU", "recipe": "quick", "seed": 4, "overrides": {}}
    changes |= {"fold": None, "edits": {}}
    for field, value in changes.items():
        assert find(dataclasses.replace(run, **{field: value}), [record]) is None
    assert find(dataclasses.replace(run, fold=1), [record]) is None
    for key in run.key():
        assert find(run, [record | {key: "other"}]) is None


@pytest.mark.parametrize("trains, old, new", [
    (False, "# for speed alone", "# another comment"),
    (False, "give 0 to", "take 0 to"),
    (False, "End on GlobalAveragePooling2D:", "End on pooling:"),
    (False, "repeats the last line of the log", "is the last line"),
    (False, "figsize=(7, 4)", "figsize=(8, 5)"),
    (True, "momentum=0.9,\n        rms", "momentum=0.8,\n        rms"),
    (True, '"TF_NUM_INTRAOP_THREADS": "1"', '"TF_NUM_INTRAOP_THREADS": "2"'),
    (True, "images[count:], labels[count:]", "images[:count], labels[:count]"),
    (True, "len(images) - holdout\n", "len(images) - holdout // 2\n"),
    (True, "x_valid = valid_images[..., None]", "x_valid = images[..., None]"),
    (True, 'set_dtype_policy("float32")', 'set_dtype_policy("float16")'),
    (True, 'history["val_accuracy"][-1]', 'max(history["val_accuracy"])'),
    (True, "partial(layers.BatchNormalization, momentum=0.9)", "layers.Layer"),
    (True, '"pointwise" not in', '"depthwise" not in'),
])  # fmt: skip
def test_the_fingerprint_is_of_the_code_that_trains(trains, old, new):
    changed = code_that_trains(read_notebook(edits={old: new}))
    assert (changed != code_that_trains(read_notebook())) == trains


def test_the_fingerprint_is_not_of_the_cells_that_hold_the_code():
    notebook = read_notebook()
    place = next(i for i, c in enumerate(notebook.cells) if c.id == "optimizer")
    first, second = notebook.cells[place].source.split("def make_optimizer", 1)
    notebook.cells[place].source = first
    new = nbformat.v4.new_code_cell(f"def make_optimizer{second}", id="new")
    notebook.cells.insert(place + 1, new)
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
    assert 0 <= record["accuracy"] <= 1 and record["loss"] > 0
    assert "history" not in record
    code = fingerprint(edits=tuple(edits.items()))
    assert (code == fingerprint()) == (not edits)


def test_a_fold_holds_out_other_images(small_data, mnist, monkeypatch):
    monkeypatch.setattr(benchmark, "HOLDOUT", 64)
    for fold, first in ((0, 576), (1, 512)):
        edits = Run("", "assignment", 0, {}, fold).all_edits()
        cells = run_cells("split", edits=edits, data_path=str(small_data), holdout=64)
        held_out = mnist["y_train"][first : first + 64]
        assert np.array_equal(cells["valid_labels"], held_out)
        assert len(cells["x_train"]) == 576
