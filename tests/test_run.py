"""Whole runs: seeds, hold-out, running again, saving, and where it runs."""

import base64
import io
import json
import subprocess
import sys

import keras
import nbformat
import numpy as np
import PIL.Image
import pytest
from notebook import DATA, find_record, read_notebook, run_cell, run_cells, run_notebook

DEFINE = "digits", "ink", "read"
AFTER = "curves", "evaluate", "wrong", "own", "scores", "record"


def same(left, right):
    """Tell whether two namespaces hold nets that are equal to the bit."""
    weights = left["model"].get_weights(), right["model"].get_weights()
    return all(map(np.array_equal, *weights))


def accuracy_of(network, images, labels):
    """Return the share of the uint8 images (n, 28, 28) that the network gets right."""
    images = images[..., None].astype("float32") / 255
    logits = network.predict(images, batch_size=1_000, verbose=0)
    return (logits.argmax(axis=1) == labels).mean()


def test_cells_run_again_are_the_same_run(first, cells):
    """Whatever parameters were changed: the cell that checks them was not run again."""
    cells |= {"seed": 7, "epochs": 1, "holdout": 100, "overrides": {"rotation": 0.0}}
    for identifier in ("network", "augment", "optimizer", "compile", "train"):
        run_cell(identifier, cells)
    assert cells["model"] is not first["model"]
    assert same(cells, first)
    for key in ("settings", "evaluated_on", "history"):
        assert cells["record"][key] == first["record"][key]
    assert len(first["record"]["history"]["loss"]) == 2
    cells["seed"] = 1
    for identifier in ("check", "train"):
        run_cell(identifier, cells)
    assert not same(cells, first)


def test_after_an_interrupt_nothing_is_shown_or_saved(cells, tmp_path, monkeypatch):
    cells["output_dir"] = str(tmp_path)
    for identifier in ("check", *DEFINE):
        run_cell(identifier, cells)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.callbacks.History, "on_epoch_end", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_cell("train", cells)
    for identifier in AFTER:
        with pytest.raises((AttributeError, TypeError), match="'NoneType' object"):
            run_cell(identifier, cells)
    assert list(tmp_path.rglob("*.*")) == []


def test_what_is_shown_is_of_the_run_whatever_data_was_read_since(
    cells, capsys, monkeypatch
):
    shown, before = [], None
    monkeypatch.setattr(
        "IPython.display.display", lambda *what, **_: shown.append(what)
    )
    for changed in ({}, {"holdout": 100, "epochs": 1, "seed": 3}):
        cells |= changed
        for identifier in ("check", "split", *DEFINE):
            run_cell(identifier, cells)
        del shown[:]
        capsys.readouterr()
        for identifier in AFTER:
            run_cell(identifier, cells)
        pictures = [what[0].data for what in shown if hasattr(what[0], "data")]
        told = capsys.readouterr().out, shown[-1], pictures
        assert len(pictures) == 4
        assert told == (before or told)
        before = told


def test_a_holdout_is_not_trained_on_and_touches_no_test_images(small_arrays, tmp_path):
    """Those are missing."""
    path = tmp_path / "train.npz"
    np.savez(path, **{k: v for k, v in small_arrays.items() if "train" in k})
    cells = run_cells("train", data_path=str(path), epochs=1, holdout=100)
    record, model = cells["record"], cells["model"]
    assert record["evaluated_on"] == "hold-out"
    assert (record["training_images"], record["evaluation_images"]) == (540, 100)
    images, labels = small_arrays["x_train"], small_arrays["y_train"]
    assert np.array_equal(np.round(255 * cells["x_train"][..., 0]), images[:540])
    assert np.array_equal(cells["y_train"].argmax(axis=1), labels[:540])
    accuracy = accuracy_of(model, images[540:], labels[540:])
    assert accuracy == pytest.approx(record["accuracy"])


def test_the_test_set_decides_nothing_and_the_last_epoch_counts(
    small_arrays, small_data, tmp_path
):
    """Wrong test labels: accuracy falls as the net learns, to the same weights."""
    images, labels = small_arrays["x_train"][:200], small_arrays["y_train"][:200]
    wrong = (labels + 1) % 10
    path = tmp_path / "wrong.npz"
    np.savez(path, **(small_arrays | {"x_test": images, "y_test": wrong}))
    given = {"epochs": 2, "overrides": {"batch_size": 32}}
    cells = run_cells("train", data_path=str(path), **given)
    assert same(cells, run_cells("train", data_path=str(small_data), **given))
    history = cells["record"]["history"]
    best, last = history["val_accuracy"]
    assert last < best
    assert cells["record"]["accuracy"] == pytest.approx(last)
    assert cells["record"]["loss"] == pytest.approx(history["val_loss"][-1])
    assert accuracy_of(cells["model"], images, wrong) == pytest.approx(last)


def test_a_run_saves_what_it_displays_and_heeds_no_settings_of_the_user(
    first, small_arrays, small_data, tmp_path, monkeypatch
):
    """A dark matplotlibrc that saves PDFs, a keras.json and limits by environment."""
    lines = "savefig.facecolor: black\nsavefig.format: pdf"
    (tmp_path / "matplotlibrc").write_text(lines)
    keras_settings = {"image_data_format": "channels_first", "floatx": "float16"}
    keras_settings |= {"backend": "theano"}
    (tmp_path / "keras.json").write_text(json.dumps(keras_settings))
    monkeypatch.setenv("MATPLOTLIBRC", str(tmp_path))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_MAX_EPOCHS", "1")
    monkeypatch.setenv("KERAS_MAX_STEPS_PER_EPOCH", "3")
    executed = tmp_path / "run.ipynb"
    parameters = {"data_path": str(small_data), "output_dir": str(tmp_path / "runs")}
    record = run_notebook(executed, {"epochs": 2} | parameters)
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "results.json").read_text()) == record
    assert record["history"] == first["record"]["history"]
    rates = record["history"]["learning_rate"]
    assert rates == pytest.approx([record["settings"]["learning_rate"] / 2, 0])
    assert record["versions"]["keras"] == keras.__version__
    assert "tensorflow" in record["versions"]
    network = keras.saving.load_model(folder / "CODE9.keras")
    accuracy = accuracy_of(network, small_arrays["x_test"], small_arrays["y_test"])
    assert accuracy == pytest.approx(record["accuracy"])
    cells = nbformat.read(executed, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    shown = [out for out in outputs if "image/png" in out.get("data", {})]
    assert len(shown) == 6
    assert all(len(out.metadata["image/png"]["alt"]) > 20 for out in shown)
    for out in shown:
        png = io.BytesIO(base64.b64decode(out.data["image/png"]))
        assert PIL.Image.open(png).convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_jax_runs_the_same_notebook(small_data, tmp_path, monkeypatch):
    pytest.importorskip("jax", reason="jax is not installed: pip install jax")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    parameters = {"epochs": 1, "data_path": str(small_data)}
    record = run_notebook(tmp_path / "run.ipynb", parameters)
    assert "jax" in record["versions"]


def test_the_script_of_it_trains(small_data, tmp_path):
    """Made by nbconvert of a copy with parameters set by hand, and run by python."""
    edits = {"epochs: int = 20": "epochs: int = 1"}
    edits['data_path: str = ""'] = f"data_path: str = {str(small_data)!r}"
    edits['output_dir: str = ""'] = 'output_dir: str = "results"'
    nbformat.write(read_notebook(edits=edits), tmp_path / "CODE9.ipynb")
    for command in (["-m", "nbconvert", "--to", "script", "CODE9.ipynb"], ["CODE9.py"]):
        subprocess.run([sys.executable, *command], cwd=tmp_path, check=True)
    (results,) = (tmp_path / "results").glob("*/results.json")
    assert len(json.loads(results.read_text())["history"]["loss"]) == 1


def test_the_main_job_passes_the_assignment(tmp_path):
    """All of it: 20 epochs on the published MNIST, headless."""
    record = run_notebook(tmp_path / "run.ipynb", {"data_path": str(DATA)})
    stored = find_record(read_notebook())
    for key in ("settings", "sha256", "parameters", "evaluated_on", "training_images"):
        assert record[key] == stored[key], key
    assert record["accuracy"] >= 0.994
    assert record["accuracy"] == pytest.approx(stored["accuracy"], abs=0.0015)


def test_the_stored_net_is_that_of_the_stored_record(mnist):
    """It needs no code but Keras' own."""
    record, path = find_record(read_notebook()), DATA.with_name("CODE9.keras")
    network = keras.saving.load_model(path)
    assert network.count_params() == record["parameters"]
    right = 10_000 * accuracy_of(network, mnist["x_test"], mnist["y_test"])
    # A digit on the border between two classes may fall either way elsewhere.
    assert abs(right - 10_000 * record["accuracy"]) < 2.5
