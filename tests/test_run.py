"""Headless runs through papermill: small ones in each way, and the main job."""

import json
import os
import re
import subprocess
import sys
import zipfile

import keras
import nbformat
import numpy as np
import papermill
import pytest
from runner import (
    DATA,
    NOTEBOOK,
    REPOSITORY,
    find_record,
    run_cells,
    run_notebook,
)

COLUMNS = {"learning_rate", "loss", "accuracy", "val_loss", "val_accuracy"}


def test_a_small_run_records_what_it_did(small_run):
    record, _, _ = small_run
    assert (record["recipe"], record["seed"], record["epochs"]) == ("assignment", 0, 2)
    assert record["training_examples"] == 640
    assert record["evaluation_examples"] == 200
    assert record["evaluated_on"] == "test"
    assert record["published_mnist"] is False
    assert record["parameters"]["total"] > record["parameters"]["trainable"]
    assert set(record["history"]) == COLUMNS
    assert all(len(values) == 2 for values in record["history"].values())
    low, high = record["accuracy_interval"]
    assert 0 <= low < record["accuracy"] < high <= 1
    assert record["one_look_accuracy"] == record["history"]["val_accuracy"][-1]
    assert record["backend"] in record["versions"]


def test_a_small_run_prints_one_line_an_epoch(small_run):
    _, notebook, _ = small_run
    cells = nbformat.read(notebook, as_version=4).cells
    log = next(cell for cell in cells if cell.get("id") == "fit").outputs
    lines = "".join(output.text for output in log).splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["epoch", "1", "2"]
    assert lines[-1].endswith(" seconds")


def test_a_small_run_saves_model_record_and_figures(small_run, small_arrays):
    record, _, folder = small_run
    assert json.loads((folder / "results.json").read_text()) == record
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in folder.iterdir() if path.is_dir()]
    network = keras.saving.load_model(folder / "CODE9.keras")
    images = small_arrays["x_test"][..., None].astype("float32") / 255
    right = network.predict(images, verbose=0).argmax(axis=1) == small_arrays["y_test"]
    assert right.mean() == pytest.approx(record["accuracy"])


def test_nbconvert_runs_it_as_papermill_does(small_data, tmp_path):
    """Plain Jupyter: the parameters written into their cell by hand."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cell = next(cell for cell in notebook.cells if cell.get("id") == "parameters")
    cell.source += f"\nepochs, data_path = 1, {str(small_data)!r}"
    nbformat.write(notebook, tmp_path / "CODE9.ipynb")
    command = [sys.executable, "-m", "nbconvert", "--execute", "--to", "notebook"]
    command += ["--output", "run", "CODE9.ipynb"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert find_record(nbformat.read(tmp_path / "run.ipynb", 4))["epochs"] == 1


@pytest.mark.parametrize("colab", [False, True])
def test_alone_with_the_cache_of_keras(colab, small_data, tmp_path, monkeypatch):
    """No repository around it, in Colab or not, and MNIST where Keras keeps it."""
    cache = tmp_path / "keras" / "datasets"
    cache.mkdir(parents=True)
    (cache / "mnist.npz").write_bytes(small_data.read_bytes())
    monkeypatch.setenv("KERAS_HOME", str(cache.parent))
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "CODE9.ipynb").write_bytes(NOTEBOOK.read_bytes())
    if colab:
        (alone / "google" / "colab").mkdir(parents=True)
        (alone / "google" / "colab" / "__init__.py").write_text("")
    record = run_notebook(
        alone / "run.ipynb", {"epochs": 1}, source=alone / "CODE9.ipynb", cwd=alone
    )
    assert record["published_mnist"] is False


def test_a_holdout_never_touches_the_test_images(mnist, tmp_path):
    """They are not even in the file."""
    path = tmp_path / "train.npz"
    np.savez(path, x_train=mnist["x_train"][:640], y_train=mnist["y_train"][:640])
    cells = run_cells("split", data_path=str(path), holdout=100)
    assert len(cells["x_train"]) == 540
    expected = mnist["x_train"][540:640, ..., None].astype("float32") / 255
    assert np.array_equal(cells["x_valid"], expected)


def test_jax_runs_the_same_notebook(small_data, tmp_path):
    pytest.importorskip("jax", reason="jax is not installed: pip install jax")
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    output = tmp_path / "run.ipynb"
    parameters = ["-p", "epochs", "1", "-p", "data_path", str(small_data)]
    command = [sys.executable, "-m", "papermill", str(NOTEBOOK), str(output)]
    subprocess.run([*command, *parameters], env=environment, check=True)
    assert find_record(nbformat.read(output, 4))["backend"] == "jax"


def test_the_main_job_passes_the_assignment(tmp_path):
    """All of it: 20 epochs on the published MNIST, without a screen."""
    record = run_notebook(tmp_path / "run.ipynb", {"data_path": str(DATA)})
    assert record["published_mnist"] is True
    assert record["evaluated_on"] == "test"
    assert record["evaluation_examples"] == 10_000
    assert record["epochs"] <= 20
    assert record["parameters"]["total"] < 15_000
    assert record["accuracy"] >= 0.994
    stored = find_record(nbformat.read(NOTEBOOK, as_version=4))
    assert record["accuracy"] == pytest.approx(stored["accuracy"], abs=0.0015)


def test_the_stored_model_scores_what_the_record_says(mnist):
    """It needs no code but Keras' own."""
    record = find_record(nbformat.read(NOTEBOOK, as_version=4))
    network = keras.saving.load_model(DATA.with_name("CODE9.keras"))
    assert network.name == "three_looks"
    assert network.count_params() == record["parameters"]["total"]
    images = mnist["x_test"][..., None].astype("float32") / 255
    logits = network.predict(images, batch_size=1_000, verbose=0)
    right = (logits.argmax(axis=1) == mnist["y_test"]).sum()
    # A digit on the border between two classes may fall either way elsewhere.
    assert abs(right - 10_000 * record["accuracy"]) <= 2


def test_the_stored_model_was_saved_by_the_oldest_keras_that_may_load_it():
    with zipfile.ZipFile(DATA.with_name("CODE9.keras")) as archive:
        saved = json.loads(archive.read("metadata.json"))["keras_version"]
    requirements = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8")
    oldest = re.search(r"^keras>=([\d.]+)", requirements, re.M).group(1)
    assert saved.startswith(f"{oldest}.")


def test_papermill_stops_at_an_error(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="recipe = 'fast'"):
        run_notebook(tmp_path / "run.ipynb", {"recipe": "fast"})
