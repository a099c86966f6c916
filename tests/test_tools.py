"""What benchmark and report compute, by small records with results found by hand."""

import collections
import dataclasses
import json
import math
import shutil

import benchmark
import nbformat
import numpy as np
import peers
import pytest
import report
from benchmark import ABLATION, Run, find
from keras import ops
from notebook import (
    NOTEBOOK,
    TRAINS,
    cell_of,
    code_that_trains,
    fingerprint,
    read_notebook,
    run_cells,
)


def record_of(name, seed, accuracy, fold=None, **others):
    """Return what is stored of a run, as far as the tables read it."""
    record = {"name": name, "seed": seed, "accuracy": accuracy, "fold": fold}
    record |= {"epochs": 20, "batch_size": 128, "cross_entropy": 0.02}
    record |= {"parameters": 14_720, "filters": [16, 32], "label_smoothing": 0.1}
    return record | {"deskew": False} | others


def rows_of(table):
    """Return the cells of a Markdown table below its head, row by row."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_an_effect_is_bold_if_it_is_told_from_zero_with_all_others_in_mind():
    # Student's t for 95% and three values is 4.303: 4.303 * 0.1 / sqrt(3) = 0.248.
    assert report.effects([[0.1, 0.2, 0.3]], 3) == ["+0.200 ± 0.248"]
    alone = [-0.3, -0.4, -0.2]  # p = 0.035
    assert report.effects([alone], 2) == ["**-0.30 ± 0.25**"]
    assert report.effects([alone, alone], 2) == ["-0.30 ± 0.25"] * 2
    sure = [-0.3, -0.31, -0.29]  # p = 0.0004, so that the other need not share
    assert report.effects([alone, sure], 2) == ["**-0.30 ± 0.25**", "**-0.30 ± 0.02**"]


def test_enough_is_the_lower_end_of_the_interval_of_the_mean():
    values = [99.43, 99.45, 99.47]  # 4.303 * 0.02 / sqrt(3) = 0.050
    assert report.lowest_mean(values) == pytest.approx(99.40, abs=0.001)
    good = [
        record_of(name, seed, accuracy + seed / 1e5, parameters=size)
        for seed in range(10)
        for name, accuracy, size in (
            ("20 epochs", 0.995, 14_720),
            ("1,976", 0.9949, 1_976),
            ("1,460", 0.9939, 1_460),
        )
    ]
    close = [0.9941 + 0.0004 * (-1) ** seed for seed in range(10)]
    close = [record_of("1 epoch", s, a, epochs=1) for s, a in enumerate(close)]
    text = report.finding(good + close)
    assert text.startswith("The shortest training that is enough takes 20 epochs: ")
    few = "the smallest that is enough has 1,976 parameters: 99.49 ± 0.00%"
    assert few in text.replace("\n", " ")
    for record in close:
        record["accuracy"] += 0.0005
    assert "takes 1 epoch: 99.46 ± 0.04%" in report.finding(good + close)
    assert "takes 20 epochs" in report.finding(good + close[:9])  # nine are too few


def test_the_tables_of_seeds_and_rules(monkeypatch):
    records = [record_of("20 epochs", *value) for value in {0: 0.993, 1: 0.994}.items()]
    records += [record_of("1 epoch", *v, epochs=1) for v in {0: 0.98, 1: 0.981}.items()]
    records += [record_of("as it is", 0, 0.5, fold=0)]
    # Student's t for 95% and two values is 12.706: 12.706 * 0.1 / 2 = 0.635.
    told = [
        ["2", "98.050 ± 0.071", "98.00", "97.415"],
        ["2", "99.350 ± 0.071", "99.30", "98.715"],
    ]
    monkeypatch.setattr(benchmark, "LENGTHS", ["1 epoch", "20 epochs"])
    assert rows_of(report.lengths_table(records)) == [
        ["1 epoch", "128", "no", *told[0]],
        ["20 epochs", "128", "no", *told[1]],
    ]
    monkeypatch.setattr(report, "SIZES", ["1 epoch", "20 epochs"])
    assert rows_of(report.widths_table(records)) == [
        ["14,720", "`[16, 32]`", "0.1", *values] for values in told
    ]
    run = {"accuracy": 0.5, "settings": {"epochs": 20}}
    rules = [row[2] for row in rows_of(report.rules_table(run, records))]
    accuracy = "**99.35 ± 0.07%** (mean ± deviation of 2 seeds)"
    assert rules == [accuracy, "14,720", "20", "none", "none"]


def test_later_seeds_have_a_table_of_their_own():
    records = [record_of("20 epochs", *value) for value in {0: 0.9, 9: 0.9}.items()]
    later = {30: 0.993, 31: 0.994}.items()
    records += [record_of("20 epochs, fresh", *value) for value in later]
    records += [record_of("1 epoch", *value, epochs=1) for value in {9: 0.9}.items()]
    later = {10: 0.98, 99: 0.981}.items()
    records += [record_of("1 epoch", *value, epochs=1) for value in later]
    records += [record_of("ReLU", 10, 0.5, fold=0)]
    rows = rows_of(report.fresh_table(records))
    assert ["|".join(row) for row in rows] == [
        "20|14,720|30 to 31|2|99.350 ± 0.071|99.30|98.715|86.085",
        "1|14,720|10 to 99|2|98.050 ± 0.071|98.00|97.415|83.821",
    ]  # the last column: with the earlier seeds


def test_a_peer_is_there_when_its_mean_is_and_takes_its_fastest_epochs(monkeypatch):
    lines = [
        {"what": "epoch", "name": "A/b", "threads": threads, "steps": 20, "seconds": s}
        for threads, s in ((1, [9.0, 2.0, 3.0]), (0, [5.0, 4.0, 4.5]))
    ]
    lines += [
        {"what": "trained", "name": "A/b", "epochs": epochs, "accuracy": accuracy}
        for epochs, each in ((15, (0.996, 0.995)), (4, (0.9935, 0.9943)))
        for accuracy in each
    ]
    lines += [
        {"what": "whole", "name": name, "seconds": seconds}
        for name, seconds in (("20 epochs", 40.0), ("1 epoch", 5.0), ("1 epoch", 7.0))
    ]
    lines += [{"what": "deskewed", "name": "deskewing", "seconds": 1.5}]
    close = [0.995 + 0.0004 * (-1) ** seed for seed in range(10)]
    records = [record_of("1 epoch", s, a, epochs=1) for s, a in enumerate(close)]
    records += [record_of("20 epochs", s, a) for s, a in enumerate(close)]
    text = report.comparison(records, lines).replace("\n", " ")
    assert text == (
        "The notebook's 1 epoch: 8 seconds (6 to 8). A/b: 15 epochs (99.55 ± 0.07%), "
        "45 seconds, 6 times as long."
    )
    assert "twenty takes 0.67 of A/b's, ev" in report.epoch_ratios(lines)
    lines[3]["accuracy"] = 0.99
    lines[2]["accuracy"] = 0.997  # the mean of 15 epochs is below 99.40% now
    assert "A/b: 15 epochs (99.35 ± 0.49%, not yet there), 45" in report.comparison(
        records, lines
    )
    used = {name: benchmark.LENGTHS[name] for name in ("1 epoch", "20 epochs")}
    monkeypatch.setattr(benchmark, "LENGTHS", used)
    rows = rows_of(report.peers_table(records, lines))
    assert [row[:4] for row in rows] == [
        ["A/b", "4", "12.0", "2"],
        ["A/b", "15", "45.0", "2"],
        ["the notebook", "1", "7.5", "10"],
        ["the notebook", "20", "40.0", "10"],
    ]
    assert rows[0][4:] == ["99.390 ± 0.057", "99.35"]
    lines.append(lines[0] | {"seconds": [8.0]})  # of another round: the median is 5.5
    times = rows_of(report.times_table(lines))
    assert times[0] == ["A/b, an epoch", "1", "20", "9.0, 2.0, 3.0, 8.0"]
    assert times[1][1:] == ["TensorFlow's choice", "20", "5.0, 4.0, 4.5"]
    assert times[3] == ["the notebook, 1 epoch", "1", "20", "5.0, 7.0"]
    assert times[4] == ["the notebook, deskewing", "1", "1", "1.5"]
    assert report.seconds_of(lines) == ({"A/b": 4.5}, {"20 epochs": 40, "1 epoch": 7.5})


def test_the_table_of_choices_compares_the_same_seed_and_fold(monkeypatch):
    monkeypatch.setattr(benchmark, "ABLATION", dict.fromkeys(["as it is", "ReLU", "X"]))
    records = [
        record_of("20 epochs", 0, 0.5),
        record_of("as it is", 0, 0.990, 0, cross_entropy=0.50),
        record_of("as it is", 0, 0.980, 1, cross_entropy=0.52),
        record_of("ReLU", 0, 0.980, 1, cross_entropy=0.55),
        record_of("ReLU", 0, 0.991, 0, cross_entropy=0.51),
        record_of("X", 0, 0.985, 0, cross_entropy=0.60),
        record_of("X", 0, 0.965, 1, cross_entropy=0.70),
    ]
    table = report.choices_table(records)
    assert rows_of(table) == [  # half an interval is 12.706 times that of the values
        ["X", "-1.000 ± 6.353", "+0.1400 ± 0.5082", "2"],
        ["ReLU", "+0.050 ± 0.635", "+0.0200 ± 0.1271", "2"],
    ]
    told = "0 of 4 differences. Unchanged: 98.50 ± 0.71% right, cross-entropy 0.5100 ±"
    assert f"\n\nBold: {told} 0.0141" in table


def test_the_log():
    history = {"loss": [0.77621], "accuracy": [0.9095], "val_loss": [0.5871]}
    history |= {"val_accuracy": [0.98466], "learning_rate": [0.1425]}
    head, line = report.log(history).splitlines()[1:-1]
    assert line.split() == ["1", "0.7762", "90.95%", "0.5871", "98.47%", "0.1425"]
    assert len(head) == len(line) <= 52


def test_cross_entropy_is_that_at_the_best_temperature():
    """Three of four are right, as sure as can be: -0.75 ln 0.75 - 0.25 ln(0.25 / 9)."""
    logits = np.zeros((4, 10), "float32")
    logits[:, 0] = 1
    labels = np.array([0, 0, 0, 1], "uint8")
    expected = -0.75 * np.log(0.75) - 0.25 * np.log(0.25 / 9)
    for factor in (0.5, 1, 4):
        found = benchmark.cross_entropy(factor * logits, labels)
        assert found == pytest.approx(expected, abs=1e-4)


def test_what_is_of_other_code_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "STORE", tmp_path / "benchmark.jsonl")
    with pytest.raises(LookupError, match="run tests/tools/benchmark"):
        benchmark.whole_records()
    lines, store = peers.read_lines(), tmp_path / "peers.jsonl"
    lines[0]["code"] = lines[-1]["code"] = "0"
    store.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    monkeypatch.setattr(peers, "STORE", store)
    with pytest.raises(LookupError, match=r"2 lines .* run tests/tools/peers"):
        peers.whole_lines()
    code, other, empty, cells = (read_notebook() for _ in range(4))
    code.metadata["code9"]["trains"] = "0"
    report.source.find_record(other)["settings"]["seed"] = 1
    cell_of(empty, "record").outputs = []
    cell_of(cells, "evaluate").source += "  # by another interval"
    for stale in (code, other, empty, cells):
        with pytest.raises(LookupError, match=r"run report.py --run"):
            report.stored_run(stale)


def test_a_record_of_another_run_is_refused():
    edits = ABLATION["Adam instead of Muon"][1]
    run = Run("ReLU", 3, 20, {"rotation": 5.0}, 0, edits)
    record = run.key() | {"accuracy": 0.99}
    assert find(run, [{"name": "ReLU"}, record]) is record
    changes = {"name": "SiLU", "epochs": 2, "seed": 4, "overrides": {}, "fold": None}
    for field, value in (changes | {"edits": {}}).items():
        assert find(dataclasses.replace(run, **{field: value}), [record]) is None
    assert find(dataclasses.replace(run, fold=1), [record]) is None


@pytest.mark.parametrize("trains, old, new", [
    (False, "# errors only", "# another comment"),
    (False, "MNIST cannot be read", "MNIST is not to be read"),
    (False, "figsize=(7, 4)", "figsize=(8, 5)"),
    (False, "steps=1_000", "steps=2_000"),  # of a figure
    (True, "momentum=0.9,\n        rms", "momentum=0.8,\n        rms"),
    (True, '"TF_NUM_INTRAOP_THREADS": "1"', '"TF_NUM_INTRAOP_THREADS": "2"'),
    (True, "held_out = images[count:]", "held_out = images[:count]"),
    (True, 'set_floatx("float32")', 'set_floatx("float16")'),
    (True, '"accuracy": accuracy}', '"accuracy": max(history["val_accuracy"])}'),
    (True, "momentum=0.9, center", "momentum=0.8, center"),
    (True, "import math\n", "import cmath as math\n"),
], ids=str)  # fmt: skip
def test_the_fingerprint_is_of_the_code_that_trains(trains, old, new):
    changed = code_that_trains(read_notebook(edits={old: new}))
    assert (changed != code_that_trains(read_notebook())) == trains


@pytest.mark.parametrize("cell", TRAINS)
@pytest.mark.parametrize("line", [
    "x_train[:] = 0.5 * x_train",
    "np.random.shuffle(x_train)",
    "RandomAffine.draw = lambda self, limit, *shape: ops.zeros(shape)",
    'if True:\n    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"',
])  # fmt: skip
def test_a_line_that_changes_something_in_place_is_noticed(cell, line):
    notebook = read_notebook()
    cell_of(notebook, cell).source += f"\n{line}"
    assert code_that_trains(notebook) != code_that_trains(read_notebook())


@pytest.mark.parametrize("name", ABLATION)
def test_each_change_runs_to_the_end(name, small_data, monkeypatch):
    """Two steps on 576 images; the 64 before the last 64 are held out."""
    overrides, edits = ABLATION[name]
    run = Run(name, 1, 2, overrides | {"batch_size": 288}, 1, edits)
    monkeypatch.setattr(benchmark, "DATA", small_data)
    monkeypatch.setattr(benchmark, "HOLDOUT", 64)
    record = run.train()
    assert find(run, [record]) is record
    assert (record["training_images"], record["evaluation_images"]) == (576, 64)
    assert record["log"][-1] == pytest.approx(record["accuracy"])
    code = fingerprint(edits=tuple(edits.items()))
    assert (code == fingerprint()) == (not edits)


def test_the_benchmark_makes_what_is_missing_once(tmp_path, monkeypatch):
    """In a process of its own: three steps of a small network on the whole MNIST."""
    run = Run("small", 3, 1, {"filters": [1] * 5, "batch_size": 20_000})
    monkeypatch.setattr(benchmark, "STORE", tmp_path / "benchmark.jsonl")
    monkeypatch.setattr(benchmark, "all_runs", lambda: [run])
    monkeypatch.setattr("sys.argv", ["benchmark.py"])
    for _ in range(2):
        benchmark.main()
        assert len(benchmark.read_records()) == len(benchmark.whole_records()) == 1


def test_a_fold_holds_out_other_images(small_data, mnist, monkeypatch):
    monkeypatch.setattr(benchmark, "HOLDOUT", 64)
    for fold, first in ((0, 576), (1, 512)):
        edits = Run("", 0, fold=fold).all_edits()
        cells = run_cells("deskew", edits=edits, data_path=str(small_data), holdout=64)
        held_out = mnist["y_train"][first : first + 64]
        assert np.array_equal(cells["evaluation_labels"], held_out)
        assert len(cells["x_train"]) == 576


def test_a_stored_training_can_be_repeated():
    """To the bit on a like machine; on another it is as if of another seed."""
    record = min(benchmark.whole_records(), key=lambda record: record["epochs"])
    names = [run.name for run in benchmark.all_runs()]
    run = benchmark.all_runs()[names.index(record["name"])]
    again = run.train()
    assert again["accuracy"] == pytest.approx(record["accuracy"], abs=0.003)
    assert again["sha256"] == record["sha256"]


def test_the_notebook_is_run_and_stored_whole_or_not_at_all(
    small_data, tmp_path, monkeypatch
):
    edits = {"epochs: int = 20": "epochs: int = 1"}
    edits['data_path: str = ""'] = f"data_path: str = {str(small_data)!r}"
    path, network = tmp_path / "CODE9.ipynb", tmp_path / "CODE9.keras"
    small = read_notebook(edits=edits)
    for cell in small.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    nbformat.write(small, path)
    monkeypatch.setattr(report.source, "NOTEBOOK", path)
    monkeypatch.setattr(report, "NOTEBOOK", path)
    monkeypatch.setattr(report, "STORED_MODEL", network)
    report.fingerprint.cache_clear()
    try:
        report.run_and_store()
        stored = nbformat.read(path, as_version=4)
        assert report.source.find_record(stored)["training_images"] == 640
        assert network.stat().st_size > 10_000
        network.unlink()
        execute = report.nbclient.execute

        def change(*given, **options):
            execute(*given, **options)
            path.write_text(path.read_text() + "\n")

        monkeypatch.setattr(report.nbclient, "execute", change)
        with pytest.raises(RuntimeError, match="changed while it ran"):
            report.run_and_store()
        assert not network.exists()
    finally:
        report.fingerprint.cache_clear()


def test_the_peers_are_built_as_published(small_data, monkeypatch):
    """Layers, counts, first kernels, schedules, rotation, normalization; they run."""
    eip4, eva4 = (peers.compiled(name, 15) for name in peers.PEERS)
    trained = sum(math.prod(v.shape) for v in eva4.trainable_variables)
    assert (eip4.count_params(), trained) == (13_050, 8_464)
    order = [type(layer).__name__ for layer in eva4.layers]
    block = ["Conv2D", "ReLU", "BatchNormalization"]
    assert order[:8] == ["Normalization", *block, *block, "MaxPooling2D"]
    assert order[8:23] == block * 5
    assert (eva4.layers[3].momentum, eva4.layers[3].epsilon) == (0.9, 1e-5)
    black = ops.convert_to_numpy(eva4.layers[0](np.zeros((1, 28, 28, 1))))
    assert black.ravel() == pytest.approx([-0.1311 / 0.3081] * 784, rel=1e-5)
    kernel = np.abs(eva4.layers[-2].kernel)  # PyTorch's: uniform, by 16 inputs
    assert 0.9 / 16**0.5 < kernel.max() <= 1 / 16**0.5
    image = np.tile(np.float32([[0, 1]]), (28, 14)).reshape(1, 28, 28, 1)
    turned = peers.pytorch_rotation()(np.repeat(image, 9, axis=0), training=True)
    values = np.unique(ops.convert_to_numpy(turned))  # nearest pixels, and corners
    assert values == pytest.approx([0, 1 / 255, 1])
    order = [type(layer).__name__ for layer in eip4.layers]
    assert order[:6] == ["Conv2D", "ReLU", *block, "Dropout"]
    for model, steps, rates in (
        (eva4, 937, {7: 1e-2, 7.01: 1e-3, 14: 1e-3, 14.01: 1e-4}),
        (eip4, 468, {0: 1e-2, 7.5: 5e-3, 15: 0}),
    ):
        for epoch, rate in rates.items():
            model.optimizer.iterations.assign(round(epoch * steps))
            assert float(model.optimizer.learning_rate) == pytest.approx(rate)
    monkeypatch.setattr(peers, "DATA", small_data)
    for name in peers.PEERS:
        seconds, accuracy = peers.train(name, 10, 0, timed=2)
        assert len(seconds) == 2
        assert 0 < accuracy < 1
    assert peers.time_deskewing() > 0


def test_the_report_writes_again_what_stands(tmp_path, monkeypatch):
    """Notebook, pages and figures, from copies that lack what is generated."""
    for path in (NOTEBOOK, *report.PAGES):
        copy = tmp_path / path.relative_to(report.REPOSITORY)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(path, copy)
    copies = tuple(
        tmp_path / path.relative_to(report.REPOSITORY) for path in report.PAGES
    )
    for copy in copies:
        parts = collections.defaultdict(lambda: "typed")
        copy.write_text(report.fill(copy.read_text("utf-8"), parts), "utf-8")
    (tmp_path / "images").mkdir()
    monkeypatch.setattr(report, "PAGES", copies)
    monkeypatch.setattr(report, "IMAGES", tmp_path / "images")
    monkeypatch.setattr(report, "NOTEBOOK", tmp_path / "CODE9.ipynb")
    monkeypatch.setattr("sys.argv", ["report.py"])
    report.main()
    assert (tmp_path / "CODE9.ipynb").read_bytes() == NOTEBOOK.read_bytes()
    for copy in copies:
        path = report.REPOSITORY / copy.relative_to(tmp_path)
        assert copy.read_text("utf-8") == path.read_text("utf-8")
    drawn = {path.name for path in (tmp_path / "images").iterdir()}
    assert drawn == {path.name for path in (report.REPOSITORY / "images").iterdir()}
