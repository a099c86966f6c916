"""Whole runs: seeds, hold-out, running again, saving, and where it runs."""

import base64
import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
import zipfile

import keras
import nbformat
import numpy as np
import PIL.Image
import pytest
from notebook import (
    DATA,
    NOTEBOOK,
    REPOSITORY,
    find_record,
    read_notebook,
    run_cell,
    run_cells,
    run_notebook,
)

PICTURES = ("digits", "augmented")
AGAIN = ("model", "rules", "augment", "optimizer", "learner", "compile", "training")


def same(left, right):
    """Tell whether two namespaces hold nets that are equal to the bit."""
    pairs = zip(left["model"].get_weights(), right["model"].get_weights(), strict=True)
    return all(a.tobytes() == b.tobytes() for a, b in pairs)


def trained(path, **parameters):
    """Return the cells' namespace after two epochs on the npz at the path."""
    parameters = {"epochs": 2} | parameters
    return run_cells("train", skip=PICTURES, data_path=str(path), **parameters)


def files_in(folder):
    """Return the contents of all files below the folder, by path."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def accuracy_of(network, images, labels):
    """Return the share of the uint8 images (n, 28, 28) that the network gets right."""
    images = images[..., None].astype("float32") / 255
    logits = network.predict(images, batch_size=1_000, verbose=0)
    return (logits.argmax(axis=1) == labels).mean()


@pytest.fixture(scope="module")
def first(small_data):
    """The namespace of a training with seed 0, which no test may change."""
    return trained(small_data)


@pytest.fixture
def cells(first):
    """A namespace to go on from."""
    return first | {"record": dict(first["record"])}


@pytest.fixture(scope="module")
def saved_twice(first, tmp_path_factory):
    """The namespace of a run that was saved, trained anew with seed 1, and saved."""
    folder = tmp_path_factory.mktemp("saved")
    cells = first | {"record": dict(first["record"]), "folder": folder}
    cells["figures"] = {"errors": b"of seed 0"}
    run_cell("record", cells)
    assert (folder / "CODE9" / "errors.png").read_bytes() == b"of seed 0"
    cells["seed"] = 1
    for identifier in ("settings", "train", "record"):
        run_cell(identifier, cells)
    return cells


@pytest.mark.parametrize("again", [(), ("settings", *AGAIN)], ids=("train", "all"))
def test_cells_run_again_are_the_same_run(first, cells, again):
    for identifier in (*again, "train"):
        run_cell(identifier, cells)
    assert cells["model"] is not first["model"]
    assert same(cells, first)
    history = cells["record"]["history"]
    assert history == first["record"]["history"]
    assert len(history["loss"]) == cells["record"]["settings"]["epochs"] == 2


def test_a_parameter_changed_too_late_changes_nothing(first, cells):
    cells |= {"recipe": "compact", "seed": 7, "epochs": 1, "holdout": 100}
    cells |= {"overrides": {"rotation": 0.0}}
    for identifier in (*AGAIN, "train"):
        run_cell(identifier, cells)
    assert cells["record"]["settings"] == first["record"]["settings"]
    assert cells["record"]["evaluated_on"] == "test"
    assert same(cells, first)


def test_after_an_interrupt_nothing_is_evaluated_or_saved(cells, tmp_path, monkeypatch):
    cells |= {"seed": 1, "folder": tmp_path}
    run_cell("settings", cells)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.callbacks.History, "on_epoch_end", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_cell("train", cells)
    with pytest.raises(RuntimeError, match="train to the end first"):
        run_cell("evaluate", cells)
    with pytest.raises(RuntimeError, match="nothing to record"):
        run_cell("record", cells)
    assert files_in(tmp_path) == {}


@pytest.mark.parametrize(
    ("cell", "changed"),
    [("settings", {"overrides": {"rotation": 0.0}}), ("split", {"holdout": 100})],
)
def test_settings_or_data_of_another_run_are_not_evaluated(cells, cell, changed):
    cells |= changed
    run_cell(cell, cells)
    with pytest.raises(RuntimeError, match="of another run"):
        run_cell("evaluate", cells)


def test_a_second_saving_replaces_the_first_as_a_whole(saved_twice, small_arrays):
    folder = saved_twice["folder"]
    assert [path.name for path in folder.iterdir()] == ["CODE9"]
    names = sorted(path.name for path in (folder / "CODE9").iterdir())
    assert names == ["CODE9.keras", "results.json"]
    record = json.loads((folder / "CODE9" / "results.json").read_text())
    assert record["settings"]["seed"] == 1
    network = keras.saving.load_model(folder / "CODE9" / "CODE9.keras")
    accuracy = accuracy_of(network, small_arrays["x_test"], small_arrays["y_test"])
    assert accuracy == pytest.approx(record["accuracy"])


@pytest.mark.parametrize("failing", ["model", "figure"])
def test_a_failing_saving_leaves_the_earlier_run(cells, failing, tmp_path, monkeypatch):
    cells |= {"folder": tmp_path, "figures": {"curves": b"of the first run"}}
    run_cell("record", cells)
    before = files_in(tmp_path)
    assert len(before) == 3
    cells["record"]["accuracy"] = 0.0
    if failing == "figure":
        cells["figures"] = {"curves": b"of the second run", "errors": None}
    else:
        monkeypatch.setattr(keras.Model, "save", lambda *_: 1 / 0)
    with pytest.raises((TypeError, ZeroDivisionError)):
        run_cell("record", cells)
    assert files_in(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["CODE9"]


def test_another_seed_gives_another_net(first, saved_twice):
    assert not same(first, saved_twice)


def test_a_holdout_never_touches_the_test_images(small_arrays, tmp_path):
    """They are missing from one file, and poisoned in the other."""
    alone = {k: v for k, v in small_arrays.items() if "train" in k}
    poison = {"x_test": np.full(3, np.nan), "y_test": np.array([{}], dtype=object)}
    runs = []
    for number, arrays in enumerate((alone, small_arrays | poison)):
        path = tmp_path / f"{number}.npz"
        np.savez(path, **arrays)
        runs.append(trained(path, epochs=1, holdout=100))
    assert same(*runs)
    record = runs[0]["record"]
    assert record["evaluated_on"] == "hold-out"
    assert (record["training_images"], record["evaluation_images"]) == (540, 100)
    held_out = small_arrays["x_train"][540:], small_arrays["y_train"][540:]
    assert accuracy_of(runs[0]["model"], *held_out) == pytest.approx(record["accuracy"])


def test_the_test_set_decides_nothing_and_the_last_epoch_counts(
    small_arrays, small_data, tmp_path
):
    """Wrong test labels: accuracy falls as the net learns, to the same weights."""
    images, labels = small_arrays["x_train"][:200], small_arrays["y_train"][:200]
    wrong = (labels + 1) % 10
    path, changes = tmp_path / "wrong.npz", {"overrides": {"batch_size": 32}}
    np.savez(path, **(small_arrays | {"x_test": images, "y_test": wrong}))
    cells = trained(path, **changes)
    assert same(cells, trained(small_data, **changes))
    history = cells["record"]["history"]
    best, last = history["val_accuracy"]
    assert last < best
    run_cell("evaluate", cells)
    assert cells["record"]["accuracy"] == last
    assert cells["accuracy"] == pytest.approx(last)
    assert cells["loss"] == pytest.approx(history["val_loss"][-1])
    assert accuracy_of(cells["model"], images, wrong) == pytest.approx(last)


def test_a_small_run_saves_what_it_displays(first, small_run, small_arrays):
    record, notebook, folder = small_run
    folder = folder / "CODE9"
    assert json.loads((folder / "results.json").read_text()) == record
    assert record["history"] == first["record"]["history"]
    assert record["versions"]["keras"] == keras.__version__
    shown = [image for _, image in figures_of(nbformat.read(notebook, 4))]
    saved = [path.read_bytes() for path in folder.glob("*.png")]
    assert len(saved) >= 3
    assert set(saved) <= set(shown)
    network = keras.saving.load_model(folder / "CODE9.keras")
    accuracy = accuracy_of(network, small_arrays["x_test"], small_arrays["y_test"])
    assert accuracy == pytest.approx(record["accuracy"])


def figures_of(notebook):
    """Return alternative text and PNG of each figure in the executed notebook."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return [
        (out.metadata["image/png"]["alt"], base64.b64decode(out.data["image/png"]))
        for out in outputs
        if "image/png" in out.get("data", {})
    ]


def papermill(output, small_data, **environment):
    """Run one epoch by papermill's command and return the executed notebook."""
    command = [sys.executable, "-m", "papermill", "--inject-paths"]
    command += [str(NOTEBOOK), str(output), "-p", "epochs", "1"]
    environment = os.environ | {name: str(v) for name, v in environment.items()}
    subprocess.run(
        [*command, "-p", "data_path", str(small_data)], env=environment, check=True
    )
    return nbformat.read(output, as_version=4)


def test_settings_of_the_user_change_nothing(small_data, tmp_path):
    """A matplotlibrc that is dark and saves PDFs, and a keras.json of other arrays."""
    style = tmp_path / "matplotlibrc"
    lines = ["axes.facecolor: black", "figure.facecolor: black", "text.color: white"]
    lines += ["savefig.facecolor: black", "savefig.format: pdf"]
    style.write_text("\n".join(lines))
    keras_settings = {"image_data_format": "channels_first", "floatx": "float16"}
    keras_settings |= {"backend": "tensorflow", "epsilon": 1e-7}
    (tmp_path / "keras.json").write_text(json.dumps(keras_settings))
    notebook = papermill(
        tmp_path / "run.ipynb", small_data, MATPLOTLIBRC=style, KERAS_HOME=tmp_path
    )
    expected = trained(small_data, epochs=1)["record"]["history"]
    assert find_record(notebook)["history"] == expected
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert not [out for out in outputs if out.output_type == "error"]
    figures = figures_of(notebook)
    assert len(figures) >= 5
    for text, content in figures:
        assert len(text) > 20
        image = PIL.Image.open(io.BytesIO(content))
        assert image.format == "PNG"
        corners = [(x, y) for x in (0, image.width - 1) for y in (0, image.height - 1)]
        assert {image.convert("RGB").getpixel(c) for c in corners} == {(255,) * 3}


def test_jax_runs_the_same_notebook(small_data, tmp_path):
    pytest.importorskip("jax", reason="jax is not installed: pip install jax")
    environment = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    notebook = papermill(tmp_path / "run.ipynb", small_data, **environment)
    assert "jax" in find_record(notebook)["versions"]


def test_the_script_of_it_trains(small_data, tmp_path):
    """Made by nbconvert of a copy with parameters set by hand, and run by python."""
    values = {"epochs": 1, "data_path": str(small_data), "output_dir": "results"}
    notebook = read_notebook()
    cell = next(cell for cell in notebook.cells if cell.id == "parameters")
    for name, value in values.items():
        cell.source = re.sub(
            rf"(?m)^({name}: \w+) = \S+", rf"\1 = {value!r}", cell.source
        )
    nbformat.write(notebook, tmp_path / "CODE9.ipynb")
    for command in (["-m", "nbconvert", "--to", "script", "CODE9.ipynb"], ["CODE9.py"]):
        subprocess.run([sys.executable, *command], cwd=tmp_path, check=True)
    results = json.loads((tmp_path / "results" / "CODE9" / "results.json").read_text())
    assert len(results["history"]["loss"]) == 1


def test_the_main_job_passes_the_assignment(tmp_path):
    """All of it: 20 epochs on the published MNIST, without a screen."""
    record = run_notebook(tmp_path / "run.ipynb", {"data_path": str(DATA)})
    assert record["evaluated_on"] == "test"
    assert (record["training_images"], record["evaluation_images"]) == (60_000, 10_000)
    assert len(record["history"]["loss"]) <= 20
    assert record["parameters"] < 15_000
    assert record["accuracy"] >= 0.994
    stored = find_record(read_notebook())
    assert record["data"] == stored["data"]
    assert record["accuracy"] == pytest.approx(stored["accuracy"], abs=0.0015)


@pytest.mark.skipif(
    "CODE9_COLAB" not in os.environ, reason="CODE9_COLAB is not set: any versions do"
)
@pytest.mark.parametrize(
    "package", ["tensorflow", "keras", "numpy", "ipython", "ipykernel"]
)
def test_the_versions_are_those_of_colab(package):
    text = (REPOSITORY / ".github" / "colab.txt").read_text(encoding="utf-8")
    wanted = re.search(rf"^{package}==(\S+)", text, re.MULTILINE).group(1)
    assert importlib.metadata.version(package) == wanted


def test_the_stored_net_is_that_of_the_stored_record(mnist):
    """It needs no code but Keras' own."""
    record, path = find_record(read_notebook()), DATA.with_name("CODE9.keras")
    network = keras.saving.load_model(path)
    assert network.count_params() == record["parameters"]
    right = 10_000 * accuracy_of(network, mnist["x_test"], mnist["y_test"])
    # A digit on the border between two classes may fall either way elsewhere.
    assert abs(right - 10_000 * record["accuracy"]) < 2.5
    with zipfile.ZipFile(path) as archive:
        metadata = json.loads(archive.read("metadata.json"))
    assert metadata["keras_version"] == record["versions"]["keras"]
