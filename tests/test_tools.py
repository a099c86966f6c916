"""What benchmark and report compute, by small records with results found by hand."""

import json
import math

import benchmark
import keras
import nbformat
import numpy as np
import pytest
import report
import speed
from benchmark import ABLATION, FOLDS, SEEDS, Run, find
from notebook import (
    code_that_trains,
    fingerprint,
    read_notebook,
    recipes,
    run_cells,
)


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


def test_a_summary():
    summary = report.summarize([0.993, 0.994, 0.998])
    assert (summary["n"], summary["worst"], summary["reached"]) == (3, 0.993, 2)
    assert summary["mean"] == pytest.approx(0.995)
    assert summary["deviation"] == pytest.approx(7e-6**0.5)  # (4 + 1 + 9) / 2
    assert report.spread(summary) == "99.50 ± 0.26"
    assert report.spread(report.summarize([0.9931])) == "99.31"
    assert report.summarize([float(np.float32(0.994))])["reached"] == 1


def test_an_effect_is_bold_if_its_interval_excludes_zero():
    # Student's t for 95 % and three values is 4.303: 4.303 * 0.1 / sqrt(3) = 0.248.
    assert report.effect([0.1, 0.2, 0.3], 3) == "+0.200 ± 0.248"
    assert report.effect([-0.3, -0.4, -0.2], 2) == "**-0.30 ± 0.25**"
    assert report.effect([0.1], 3) == "+0.100"
    assert report.effect([0.1, 0.1], 2) == "+0.10 ± 0.00"  # two can be equal by chance


def test_the_table_of_seeds():
    runs = [Run("assignment", "assignment", seed) for seed in (0, 1, 20)]
    records = [record_of(run, 0.9935 + 0.001 * i) for i, run in enumerate(runs)]
    assert rows_of(report.seeds_table(records)) == [
        ["`assignment`", "14,720", "20", "2", "99.400 ± 0.071", "99.35", "1 of 2"],
        ["`assignment`, fresh seeds", "14,720", "20", "1", "99.550", "99.55", "1 of 1"],
    ]
    others = [record | {"fingerprint": "0"} for record in records]
    assert report.seeds_table(others) == report.not_yet()
    rules = rows_of(report.rules_table(None, records))
    assert rules[0][2] == "**99.40 ± 0.07 %** over 2 seeds"
    assert [row[2] for row in rules[1:]] == ["14,720", "20", "none", "none"]
    rules = rows_of(report.rules_table({"accuracy": 0.9961}, []))
    assert rules[0][2] == "**99.61 %** in the stored run"


def test_the_table_of_choices_compares_the_same_seed_and_fold():
    values = {
        "as it is": [(0.99, 0.50), (0.98, 0.52)],
        "ReLU instead of SiLU": [(0.991, 0.51), (0.979, 0.53), (0.5, 0.9)],
        "no label smoothing": [(0.985, 0.1), (0.975, 0.1)],
        "a constant learning rate": [(0.98, 0.56)],
        report.PLAIN: [(0.989, 0.2), (0.979, 0.3)],
    }
    places = [(0, FOLDS[0]), (0, FOLDS[1]), (2, FOLDS[0])]
    records = [
        record_of(changed(name, *place), *value)
        for name, pairs in values.items()
        for place, value in zip(places, pairs, strict=False)
    ]
    table = report.choices_table(records)
    assert rows_of(table) == [  # 12.706 * 0.1 = 1.271 is half the interval of ±0.1
        [report.PLAIN, "-0.100 ± 0.000", "", "2"],
        ["a constant learning rate", "-1.000", "+0.0600", "1"],
        ["no label smoothing", "-0.500 ± 0.000", "", "2"],
        ["ReLU instead of SiLU", "+0.000 ± 1.271", "+0.0100 ± 0.0000", "2"],
    ]
    assert table.endswith("98.50 ± 0.71 % of the images held out (n = 2).")
    assert report.choices_table(records[2:]) == report.not_yet()
    for few in ([], records[:1], records):
        assert report.plot_ablation(few).startswith(b"\x89PNG")
    assert report.plot_ablation(records) == report.plot_ablation(records)


def test_the_table_and_the_figure_of_other_widths():
    runs = benchmark.frontier_runs()
    small = [run for run in runs if run.name == "700 parameters" and run.seed < 2]
    whole = [Run("assignment", "assignment", seed) for seed in (0, 9)]
    records = [record_of(run, 0.99 + run.seed / 1e3, parameters=702) for run in small]
    records += [record_of(run, 0.996) for run in whole]
    assert rows_of(report.frontier_table(records)) == [
        ["702", "`[5, 8, 9, 9, 10]`", "2", "99.05 ± 0.07", "99.00"],
        ["14,720", "`[16, 32, 56, 72, 72]`", "1", "99.60", "99.60"],  # seed 9 is not in
    ]
    assert report.frontier_table(records[2:]) == report.not_yet()
    groups = report.by_recipe(SEEDS, records)
    assert report.finding(groups).startswith("1 of 16 ")  # one ends at 99.60
    for record in records:
        record["accuracy"] += 0.0001
    assert report.finding(groups).startswith("Our mean is above the 16 ")
    for some in ([], records):
        assert report.plot_comparison(some).startswith(b"\x89PNG")


def test_the_log_and_the_stored_run():
    history = {"loss": [0.77621], "accuracy": [0.9095], "val_loss": [0.5871]}
    history |= {"val_accuracy": [0.98466]}
    head, line = report.log({"history": history}).splitlines()[1:-1]
    assert line.split() == ["1", "0.7762", "90.95%", "0.5871", "98.47%"]
    assert len(head) == len(line) <= 44
    assert report.stored_run(nbformat.v4.new_notebook()) is None


def test_the_table_of_times(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "SPEED", tmp_path / "speed.json")
    assert report.peers_table([]) == report.not_yet("speed.py", "measured")
    ours = {"epochs": 1, "seconds": 9.96, "settings": "s"}
    theirs = ours | {"epochs": 10, "seconds": 25, "accuracies": [0.993, 0.995]}
    timed = {"machine": "m", "load": 0.1, "repeats": 2}
    timed |= {"timed": {"quick": ours, "them": theirs}}
    report.SPEED.write_text(json.dumps(timed | {"fingerprint": "0"}))
    assert report.peers_table([]) == report.not_yet("speed.py", "measured")
    report.SPEED.write_text(json.dumps(timed | {"fingerprint": fingerprint()}))
    text = report.peers_table([record_of(Run("quick", "quick", 0), 0.994)])
    assert rows_of(text) == [
        ["quick", "1", "10.0", "10.0", "99.40 (n = 1)", "s"],
        ["them", "10", "25.0", "2.5", "99.40 ± 0.14 (n = 2)", "s"],
    ]


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
    for other in (
        Run("SiLU", "assignment", 3, run.overrides, 0, edits),
        Run("ReLU", "quick", 3, run.overrides, 0, edits),
        Run("ReLU", "assignment", 4, run.overrides, 0, edits),
        Run("ReLU", "assignment", 3, {}, 0, edits),
        Run("ReLU", "assignment", 3, run.overrides, 1, edits),
        Run("ReLU", "assignment", 3, run.overrides, None, edits),
        Run("ReLU", "assignment", 3, run.overrides, 0, {}),
    ):
        assert find(other, [record]) is None
    for key in run.key():
        assert find(run, [record | {key: "other"}]) is None


def test_the_store_is_json_lines_that_are_appended(tmp_path, monkeypatch):
    store, runs = (
        tmp_path / "store.jsonl",
        [Run(name, name, 0) for name in recipes()],
    )
    monkeypatch.setattr(benchmark, "STORE", store)
    assert benchmark.read_records() == []
    for run in runs:
        with store.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record_of(run, 0.99)) + "\n")
    assert [record["name"] for record in benchmark.read_records()] == recipes()
    monkeypatch.setattr(benchmark, "all_runs", lambda: runs)
    monkeypatch.setattr("sys.argv", ["benchmark.py"])
    before = store.read_bytes()
    benchmark.main()  # nothing is missing, so nothing is trained or rewritten
    assert store.read_bytes() == before


def code_with(old, new):
    """Return the code that trains with a text of the notebook replaced."""
    return code_that_trains(read_notebook(edits={old: new}))


@pytest.mark.parametrize("old, new", [
    ("# for speed alone", "# another comment"),
    ("Return the images, each changed", "Each changed"),
    ("give a number from 0 to", "take one from 0 to"),
    ("End on GlobalAveragePooling2D:", "End on pooling:"),
    ("repeats the last line of the log", "is the last line"),
    ("figsize=(7, 4)", "figsize=(8, 5)"),
    ("wrong[:60]", "wrong[:50]"),
])  # fmt: skip
def test_the_fingerprint_is_not_of_texts_and_pictures(old, new):
    assert code_with(old, new) == code_that_trains(read_notebook())


def test_the_fingerprint_is_not_of_the_cells_that_hold_the_code():
    notebook = read_notebook()
    place = next(i for i, c in enumerate(notebook.cells) if c.id == "optimizer")
    first, second = notebook.cells[place].source.split("def make_optimizer", 1)
    notebook.cells[place].source = first
    new = nbformat.v4.new_code_cell(f"def make_optimizer{second}", id="new")
    notebook.cells.insert(place + 1, new)
    assert code_that_trains(notebook) == code_that_trains(read_notebook())


@pytest.mark.parametrize("old, new", [
    ("momentum=0.9,\n        rms", "momentum=0.8,\n        rms"),
    ('"TF_NUM_INTRAOP_THREADS": "1"', '"TF_NUM_INTRAOP_THREADS": "2"'),
    ("images[count:], labels[count:]", "images[:count], labels[:count]"),
    ("len(images) - holdout\n", "len(images) - holdout // 2\n"),
    ("x_valid = valid_images[..., None]", "x_valid = images[..., None]"),
    ('set_dtype_policy("float32")', 'set_dtype_policy("float16")'),
    ('history["val_accuracy"][-1]', 'max(history["val_accuracy"])'),
    ("partial(layers.BatchNormalization, momentum=0.9)", "layers.BatchNormalization"),
    ('"pointwise" not in', '"depthwise" not in'),
])  # fmt: skip
def test_the_fingerprint_is_of_all_that_trains_and_measures(old, new):
    assert code_with(old, new) != code_that_trains(read_notebook())


@pytest.fixture(scope="module")
def tiny(mnist, tmp_path_factory):
    """An npz of the first 320 training images, and no test images."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.npz"
    np.savez(path, x_train=mnist["x_train"][:320], y_train=mnist["y_train"][:320])
    return path


@pytest.mark.parametrize("name", ABLATION)
def test_each_change_runs_to_the_end(name, tiny, monkeypatch):
    """Two steps on 256 images; the 64 before the last 64 are held out."""
    monkeypatch.setattr(benchmark, "DATA", tiny)
    monkeypatch.setattr(benchmark, "HOLDOUT", 64)
    overrides, edits = ABLATION[name]
    few_steps = {"epochs": 2, "batch_size": 256}
    run = Run(name, "assignment", 1, overrides | few_steps, 1, edits)
    record = run.train()
    assert find(run, [record]) is record
    assert (record["training_images"], record["evaluation_images"]) == (256, 64)
    assert 0 <= record["accuracy"] <= 1 and record["loss"] > 0
    assert "history" not in record
    if edits:
        code = fingerprint(edits=tuple(edits.items()))
        others = [tuple(e.items()) for _, e in ABLATION.values() if e != edits]
        assert code not in {fingerprint(edits=other) for other in others}


def test_a_fold_holds_out_other_images(tiny, mnist, monkeypatch):
    monkeypatch.setattr(benchmark, "HOLDOUT", 64)
    for fold, first in ((0, 256), (1, 192)):
        edits = Run("", "assignment", 0, {}, fold).all_edits()
        cells = run_cells("split", edits=edits, data_path=str(tiny), holdout=64)
        assert np.array_equal(
            cells["valid_labels"], mnist["y_train"][first : first + 64]
        )
        assert len(cells["x_train"]) == 256
