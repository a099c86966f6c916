"""Bad input ends in one clear error, before any training."""

import inspect

import keras
import numpy as np
import pytest
from notebook import run_cell, run_cells


@pytest.mark.parametrize(("parameters", "message"), [
    ({"recipe": "fast"}, "recipe.*'assignment', 'compact'"),
    ({"seed": -1}, "seed.*greater than or equal to 0"),
    ({"epochs": 21}, "epochs.*less than or equal to 20"),
    ({"epochs": "3"}, "epochs.*valid integer"),
    ({"overrides": {"rate": 1.0}}, "rate.*not permitted"),
    ({"overrides": {"filters": [16, 32]}}, "filters.*at least 5 items"),
    ({"overrides": {"filters": [16, 32, 56, 72, 99]}}, "parameters are too many"),
    ({"holdout": 640}, "holdout = 640: give 0 to 639 images"),
    ({"holdout": True}, "holdout = True: give 0 to 639 images"),
    ({"holdout": 127}, "last batch would be one image: choose another holdout"),
], ids=str)  # fmt: skip
def test_a_bad_parameter_is_named(parameters, message, small_data):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        run_cells("output", data_path=str(small_data), **parameters)


@pytest.mark.parametrize(("name", "array", "reason"), [
    ("x_train", np.zeros((640, 32, 32), "uint8"), r"x_train \(640, 32, 32\)"),
    ("y_train", np.zeros(639, "uint8"), r"x_train \(640, 28, 28\)"),
    ("y_test", np.zeros(200, "int64"), "y_test int64"),
    ("y_test", np.full(200, 10, "uint8"), "y_test up to 10"),
    ("x_train", np.array([{}, {}], dtype=object), "allow_pickle=False"),
    ("a download that was cut off", None, "not a zip file"),
])  # fmt: skip
def test_a_file_that_is_not_mnist_is_refused(
    name, array, reason, small_arrays, tmp_path
):
    path = tmp_path / "bad.npz"
    np.savez(path, **(small_arrays | {name: array}))
    if array is None:
        path.write_bytes(path.read_bytes()[:50_000])
    message = f"This is not MNIST: .*{reason}.*Set data_path to a copy of https://"
    with pytest.raises(ValueError, match=message):
        run_cells("split", data_path=str(path))


def test_what_is_downloaded_is_what_keras_would(small_data, tmp_path, monkeypatch):
    """With no repository around it: Keras' own loader has the same address and hash."""
    loader = inspect.getsource(keras.datasets.mnist.load_data)

    def get_file(name, origin, file_hash):
        assert origin.endswith(f"/{name}") and origin.removesuffix(name) in loader
        assert len(file_hash) == 64 and file_hash in loader
        return small_data

    monkeypatch.setattr(keras.utils, "get_file", get_file)
    monkeypatch.chdir(tmp_path)
    assert run_cells("load")["load"]("", "train")[0].shape == (640, 28, 28)


@pytest.mark.parametrize(("name", "message"), [
    ("s3://x", "it is an address. Name a folder"),
    ("/content/drive/MyDrive/x", "Google Drive is not mounted"),
    ("file/x", "Not a directory: 'file/x'. Name a folder that can be written"),
    (".", "CODE9 holds something else, which would be replaced"),
])  # fmt: skip
def test_a_folder_that_cannot_be_is_refused(
    name, message, cells, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()
    (tmp_path / "CODE9").mkdir()
    cells["output_dir"] = name
    with pytest.raises(ValueError, match=f"output_dir = '{name}': .*{message}"):
        run_cell("output", cells)
    assert {path.name for path in tmp_path.rglob("*")} == {"file", "CODE9"}
    (tmp_path / "CODE9" / "results.json").touch()
    run_cell("output", cells | {"output_dir": "."})  # an earlier run is replaced
    run_cell("output", cells | {"output_dir": "~/a/b"})
    assert (tmp_path / "a" / "b").is_dir()
