"""Bad input ends in one clear error, before any training."""

import inspect
import os

import keras
import numpy as np
import pytest
from notebook import DATA, run_cell, run_cells


@pytest.mark.parametrize(("parameters", "message"), [
    ({"seed": -1}, "seed.*greater than or equal to 0"),
    ({"epochs": 21}, "epochs.*less than or equal to 20"),
    ({"epochs": "3"}, "epochs.*valid integer"),
    ({"holdout": 60_000}, "holdout.*less than 60000"),
    ({"holdout": True}, "holdout.*valid integer"),
    ({"overrides": {"rate": 1.0}}, "overrides.rate.*not permitted"),
    ({"overrides": {"seed": 5}}, "overrides.seed.*not permitted"),
    ({"overrides": '{"rotation": 60.0}'}, "overrides.*valid dictionary"),
    ({"overrides": [1]}, "overrides.*valid dictionary"),
    ({"overrides": {"filters": [16, 32]}}, "overrides.filters.*at least 5 items"),
    ({"overrides": {"learning_rate": float("nan")}}, "learning_rate.*nan"),
    ({"data_path": DATA}, "data_path.*valid string"),
    ({"data_path": "~nosuchuser/x"}, "data_path.*give a path on this machine"),
    ({"output_dir": 2026}, "output_dir.*valid string"),
    ({"output_dir": "s3://x"}, "output_dir.*give a path on this machine"),
], ids=str)  # fmt: skip
def test_a_bad_parameter_is_named(parameters, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        run_cells("check", **parameters)


def test_a_home_folder_is_found(small_data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "small.npz").symlink_to(small_data)
    cells = run_cells("split", data_path="~/small.npz", output_dir="~/a/b")
    assert cells["data"]["training_images"] == 640
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file/x"):
        run_cells("check", output_dir=str(tmp_path / "file" / "x"))
    if os.geteuid():  # the superuser may write everywhere
        (tmp_path / "read-only").mkdir(mode=0o500)
        with pytest.raises(PermissionError, match="read-only"):
            run_cells("check", output_dir=str(tmp_path / "read-only"))


@pytest.mark.parametrize(("name", "array", "reason"), [
    ("x_train", np.zeros((640, 32, 32), "uint8"), r"\(640, 32, 32\)"),
    ("y_train", np.zeros(639, "uint8"), r"labels \(639,\)"),
    ("y_test", np.zeros((200, 1), "uint8"), r"labels \(200, 1\)"),
    ("y_test", np.zeros((40, 5), "uint8"), r"labels \(40, 5\)"),
    ("y_test", np.zeros(200, "int64"), "int64"),
    ("y_test", np.full(200, 10, "uint8"), "up to 10"),
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
    message = f"MNIST cannot be read: .*{reason}.*Set data_path to a copy of https://"
    with pytest.raises(ValueError, match=message):
        run_cells("split", data_path=str(path))


def test_a_holdout_leaves_training_images(small_data):
    with pytest.raises(ValueError, match="holdout = 640: there are 640 images"):
        run_cells("split", data_path=str(small_data), holdout=640)


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


@pytest.mark.parametrize("version", ["3.8.0", "3.10.2"])
def test_an_old_keras_is_named(version, monkeypatch):
    monkeypatch.setattr(keras, "__version__", version)
    with pytest.raises(ImportError, match=f"-U keras: 3.13 is needed, not {version}"):
        run_cells("options")


def test_options_of_the_machine_do_not_count(monkeypatch):
    """As KERAS_MAX_EPOCHS and keras.json set them."""
    keras.config.set_max_epochs(1)
    keras.config.set_max_steps_per_epoch(5)
    keras.config.set_floatx("float16")
    keras.config.set_image_data_format("channels_first")
    run_cells("options")
    limits = keras.config.max_epochs(), keras.config.max_steps_per_epoch()
    assert limits == (None, None)
    assert keras.config.dtype_policy().name == keras.config.floatx() == "float32"
    assert keras.config.image_data_format() == "channels_last"
    monkeypatch.setenv("KERAS_BACKEND", "")
    run_cell("setup", {})
    assert os.environ["KERAS_BACKEND"] == "tensorflow"
