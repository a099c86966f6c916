"""Bad input ends in one clear error, before any training."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from notebook import REPOSITORY, run_cell, run_cells

PICTURES = ("digits", "augmented")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"recipe": "fast"}, "recipe.*'assignment', 'compact'"),
        ({"seed": -1}, "seed.*greater than or equal to 0"),
        ({"seed": 1.5}, "seed.*valid integer"),
        ({"epochs": 21}, "epochs.*less than or equal to 20"),
        ({"epochs": -1}, "epochs.*greater than or equal to 1"),
        ({"epochs": "3"}, "epochs.*valid integer"),
        ({"overrides": {"rate": 1.0}}, "rate.*not permitted"),
        ({"overrides": {"learning_rate": "high"}}, "learning_rate.*valid number"),
        ({"overrides": {"learning_rate": float("nan")}}, "learning_rate.*less than"),
        ({"overrides": {"epochs": 21}}, "epochs.*less than or equal to 20"),
        ({"overrides": {1: 2}}, "must be strings"),
        ({"overrides": {"seed": 3}}, "multiple values for keyword argument 'seed'"),
        ({"overrides": [3]}, "is not a mapping"),
        ({"overrides": {"filters": [16, 32]}}, "filters.*at least 5 items"),
        ({"overrides": {"filters": [16, 0, 9, 9, 9]}}, "filters.*greater than 0"),
        ({"overrides": {"filters": [16, 32, 56, 72, 99]}}, "parameters are too many"),
        ({"holdout": -5}, "holdout = -5: give a number from 0 to 639"),
        ({"holdout": 640}, "holdout = 640: give a number from 0 to 639"),
    ],
    ids=str,
)
def test_a_bad_parameter_is_named(parameters, message, small_data):
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
        run_cells("output", skip=PICTURES, data_path=str(small_data), **parameters)


def test_a_corrected_parameter_is_accepted(small_data):
    cells = run_cells("split", data_path=str(small_data), overrides={"turn": 5.0})
    with pytest.raises(ValueError, match="turn"):
        run_cell("settings", cells)
    cells["overrides"] = {"rotation": 5.0}
    run_cell("settings", cells)
    assert cells["settings"].rotation == 5.0


BAD_ARRAYS = {
    "array missing": {"y_train": None},
    "test images missing": {"x_test": None},
    "another shape": {"x_train": np.zeros((640, 32, 32), "uint8")},
    "fewer labels": {"y_train": np.zeros(639, "uint8")},
    "no images": {
        "x_train": np.zeros((0, 28, 28), "uint8"),
        "y_train": np.zeros(0, "uint8"),
    },
    "another type": {"x_train": np.zeros((640, 28, 28), "float32")},
    "signed labels": {"y_test": np.zeros(200, "int64")},
    "a label over 9": {"y_test": np.full(200, 10, "uint8")},
    "objects": {"x_train": np.array([{}, {}], dtype=object)},
}


@pytest.mark.parametrize(
    "kind", [*BAD_ARRAYS, "missing", "no archive", "cut off", "a folder"]
)
def test_a_file_that_is_not_mnist_is_refused(kind, small_arrays, small_data, tmp_path):
    path = tmp_path / "bad.npz"
    if kind in BAD_ARRAYS:
        arrays = small_arrays | BAD_ARRAYS[kind]
        np.savez(path, **{name: a for name, a in arrays.items() if a is not None})
    elif kind == "no archive":
        path.write_text("not a zip")
    elif kind == "cut off":
        path.write_bytes(small_data.read_bytes()[:50_000])
    elif kind == "a folder":
        path.mkdir()
    message = r"This is not MNIST: .*\. Set data_path to a copy of https://.*mnist.npz"
    with pytest.raises(ValueError, match=message):
        run_cells("split", data_path=str(path))


def test_another_file_in_the_cache_of_keras_is_not_used(small_data, tmp_path):
    """Alone, with no repository around it and no network, and a cached file."""
    cached, alone = tmp_path / "keras" / "datasets" / "mnist.npz", tmp_path / "alone"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(small_data.read_bytes())
    alone.mkdir()
    edits = {'ORIGIN = "https://storage.googleapis.com': 'ORIGIN = "http://127.0.0.1:9'}
    code = f"from notebook import run_cells; run_cells('split', edits={edits!r})"
    paths = {"KERAS_HOME": cached.parents[1], "PYTHONPATH": REPOSITORY / "tests/tools"}
    environment = os.environ | {name: str(path) for name, path in paths.items()}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=alone,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: This is not MNIST: "), done.stderr
    assert "Set data_path" in last


@pytest.fixture(scope="module")
def cells(small_data):
    """The notebook's namespace before the folder for the results is checked."""
    return run_cells("rules", skip=PICTURES, data_path=str(small_data))


def test_a_folder_in_the_home_folder_is_made_there(cells, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = dict(cells, output_dir="~/a/b")
    run_cell("output", folder)
    assert folder["folder"] == tmp_path / "a" / "b"
    assert list(folder["folder"].iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("s3://x", "it is an address. Name a folder"),
        ("gs://x/y", "it is an address. Name a folder"),
        ("/content/drive/MyDrive/x", "Google Drive is not mounted"),
        ("file", "File exists: .*Name a folder that can be written"),
        ("file/x", "Not a directory: 'file/x'. Name a folder that can be written"),
    ],
)
def test_a_folder_that_cannot_be_is_refused(
    name, message, cells, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(ValueError, match=f"output_dir = '{name}': .*{message}"):
        run_cell("output", dict(cells, output_dir=name))
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_folder_of_somebody_else_is_not_replaced(cells, tmp_path):
    (tmp_path / "CODE9").mkdir()
    (tmp_path / "CODE9" / "letter.txt").write_text("kept")
    cells["output_dir"] = str(tmp_path)
    with pytest.raises(ValueError, match="CODE9 holds something else"):
        run_cell("output", cells)
    assert (tmp_path / "CODE9" / "letter.txt").read_text() == "kept"
    (tmp_path / "CODE9" / "letter.txt").rename(tmp_path / "CODE9" / "results.json")
    run_cell("output", cells)  # a run saved earlier is


@pytest.mark.parametrize("holdout", [True, "100", 127])
def test_a_holdout_that_cannot_be_is_refused(holdout, small_data):
    """With 127 of 640 held out, the last batch of 128 would be a single image."""
    with pytest.raises(ValueError, match="holdout"):
        run_cells("rules", data_path=str(small_data), holdout=holdout)
