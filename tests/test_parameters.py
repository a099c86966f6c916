"""Bad input: one clear error before any training, and nothing lost of a good run."""

import io
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import keras
import numpy as np
import papermill
import pytest
from runner import NOTEBOOK, run_cell, run_cells, run_notebook


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"recipe": "fast"}, "recipe = 'fast': .* 'assignment', 'compact' or 'quick'"),
        ({"recipe": 3}, "recipe = 3: "),
        ({"seed": "a"}, "seed = 'a': .* valid integer"),
        ({"seed": 1.5}, "seed = 1.5: .* valid integer"),
        ({"seed": -1}, "seed = -1: .* greater than or equal to 0"),
        ({"epochs": True}, "epochs = True: .* valid integer"),
        ({"epochs": -1}, "epochs = -1: .* greater than or equal to 0"),
        ({"epochs": 21}, "epochs = 21: .* less than or equal to 20"),
        ({"holdout": -5}, "holdout = -5: .* greater than or equal to 0"),
        ({"holdout": 60_000}, "holdout = 60000: .* less than 60000"),
        ({"overrides": [1]}, "overrides = .*: .* valid dictionary"),
        ({"data_path": 1}, "1 cannot be used: .* Give an npz file"),
        ({"data_path": "a" * 300}, "cannot be used: .* Give an npz file"),
        ({"output_dir": "a\0b"}, "output_dir .* cannot be written: .* Name another"),
        ({"output_dir": "requirements.txt"}, "output_dir .* cannot be written"),
        ({"output_dir": "requirements.txt/x"}, "output_dir .* cannot be written"),
        ({"overrides": {"rate": 1}}, "rate = 1: .* The names are filters, first"),
        ({"overrides": {"learning_rate": "high"}}, "learning_rate = 'high': .* number"),
        ({"overrides": {"learning_rate": -1}}, "learning_rate = -1: .* greater than 0"),
        ({"overrides": {"learning_rate": float("nan")}}, "learning_rate = nan: "),
        ({"overrides": {"epochs": 21}}, "epochs = 21: .* less than or equal to 20"),
        ({"overrides": {"batch_size": 0}}, "batch_size = 0: .* greater than or equal"),
        ({"overrides": {"separable": 1}}, "separable = 1: .* valid boolean"),
        ({"overrides": {"filters": []}}, "filters = .*: .* at least 1 item"),
        ({"overrides": {"filters": [16, -1]}}, "filters = -1: .* greater than 0"),
        ({"overrides": {"filters": [10**6, 9]}}, "filters = 1000000: .* less than"),
        ({"overrides": {"filters": [[16]]}}, "filters = .*: .* valid integer"),
        ({"overrides": {"filters": [4] * 9}}, "filters = .*: .* at most 6 items"),
        ({"overrides": {"filters": [120, 120, 120]}}, "stay below 15,000"),
        ({"overrides": {"filters": [9] * 6, "first_kernel": 7}}, "maps get too small"),
    ],
    ids=str,
)
def test_a_bad_parameter_ends_in_one_sentence(parameters, message):
    with pytest.raises(ValueError, match=message):
        run_cells("rules", **parameters)


def test_every_fault_is_named_at_once():
    with pytest.raises(ValueError, match=r"seed = -1: .*; epochs = 21: "):
        run_cells("check", seed=-1, epochs=21)


def test_the_notebook_refuses_a_parameter_that_does_not_exist(small_data, tmp_path):
    """papermill run by hand only warns of it."""
    parameters = {"sede": 1, "data_path": str(small_data)}
    with pytest.raises(papermill.PapermillExecutionError, match=r"sede = 1: .* names"):
        papermill.execute_notebook(
            NOTEBOOK, tmp_path / "run.ipynb", parameters, progress_bar=False
        )


def archive_of(arrays, **changes):
    """Return the bytes of an npz of the arrays, changed; None leaves one out."""
    kept = {k: v for k, v in (arrays | changes).items() if v is not None}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **kept)
    return buffer.getvalue()


BAD_ARRAYS = {
    "lacks an array": ({"y_train": None}, "cannot be used"),
    "lacks the test images": ({"x_test": None}, "cannot be used"),
    "another shape": ({"x_train": np.zeros((640, 32, 32), "uint8")}, "give uint8"),
    "flat": ({"x_train": np.zeros((640, 784), "uint8")}, "give uint8"),
    "another type": ({"x_train": np.zeros((640, 28, 28), "int64")}, "give uint8"),
    "not a number": ({"x_train": np.full((640, 28, 28), np.nan)}, "give uint8"),
    "one-hot labels": ({"y_train": np.zeros((640, 10), "uint8")}, "give uint8"),
    "label 10": ({"y_train": np.full(640, 10, "uint8")}, "labels up to 9"),
    "test label 10": ({"y_test": np.full(200, 10, "uint8")}, "labels up to 9"),
    "fewer labels": ({"y_train": np.zeros(639, "uint8")}, "give uint8"),
    "no examples": (
        {"x_train": np.zeros((0, 28, 28), "uint8"), "y_train": np.zeros(0, "uint8")},
        "give uint8",
    ),
    "objects": ({"x_train": np.array([{}, {}], dtype=object)}, "cannot be used"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_bad_arrays_are_refused(kind, small_arrays, tmp_path):
    changes, message = BAD_ARRAYS[kind]
    path = tmp_path / "bad.npz"
    path.write_bytes(archive_of(small_arrays, **changes))
    with pytest.raises(ValueError, match=message):
        run_cells("split", data_path=str(path))


def test_a_damaged_file_is_refused(small_arrays, tmp_path):
    whole = archive_of(small_arrays)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    single = io.BytesIO()
    np.save(single, np.zeros(3))
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("x_train.npy", b"no array")
        archive.writestr("y_train.npy", b"no array")
        archive.writestr("x_test.npy", b"no array")
        archive.writestr("y_test.npy", b"no array")
    contents = {
        "empty": b"",
        "cut off": whole[: len(whole) // 2],
        "cut early": whole[:100],
        "flipped": bytes(flipped),
        "text": b"no archive at all",
        "pickle": pickle.dumps({"x_train": 1}),
        "one array": single.getvalue(),
        "no arrays": other.getvalue(),
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        message = r"cannot be used: .* Give an npz|: give uint8"
        with pytest.raises(ValueError, match=message):
            run_cells("split", data_path=str(path))


def test_a_path_that_is_no_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing.npz"):
        with pytest.raises(ValueError, match=r"cannot be used: .* Give an npz file"):
            run_cells("split", data_path=str(path))


def test_a_pickle_is_never_run(small_arrays, tmp_path):
    trace = tmp_path / "trace"

    class Hostile:
        def __reduce__(self):
            return (open, (str(trace), "w"))

    path = tmp_path / "hostile.npz"
    hostile = np.array([Hostile()], dtype=object)
    path.write_bytes(archive_of(small_arrays, x_train=hostile))
    trace.unlink(missing_ok=True)
    with pytest.raises(ValueError, match="cannot be used"):
        run_cells("split", data_path=str(path))
    assert not trace.exists()


def test_no_data_and_no_network_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def no_network(*_):
        raise OSError("no network")

    monkeypatch.setattr(keras.utils, "get_file", no_network)
    message = r"cannot be downloaded: get https://.*mnist.npz elsewhere, set data_path"
    with pytest.raises(FileNotFoundError, match=message):
        run_cells("load")


def test_a_failed_run_leaves_an_earlier_one_as_it_was(small_run, small_data, tmp_path):
    _, _, folder = small_run
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    parameters = {"data_path": str(small_data), "output_dir": str(folder), "epochs": 21}
    with pytest.raises(papermill.PapermillExecutionError, match="epochs = 21"):
        run_notebook(tmp_path / "run.ipynb", parameters)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_results_are_written_whole_or_not_at_all(small_data, tmp_path):
    """Writing breaks off after the model and the record were written."""
    folder = tmp_path / "output"
    parameters = {"data_path": str(small_data), "output_dir": str(folder), "epochs": 1}
    cells = run_cells("save", **parameters)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {"CODE9.keras", "results.json"} <= set(before)
    cells["record"]["seed"] = 5
    cells["figures"]["broken"] = None
    with pytest.raises(TypeError):
        cells["save_results"](str(folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_training_that_turns_to_nan_stops_with_a_sentence(small_data):
    cells = run_cells("compile", data_path=str(small_data), epochs=2)
    network = cells["model"]
    network.set_weights([weight * np.nan for weight in network.get_weights()])
    with pytest.raises(
        ValueError, match=r"no number any more: lower the learning_rate"
    ):
        run_cell("fit", cells)


def test_an_interrupted_training_leaves_an_earlier_run_as_it_was(small_run, tmp_path):
    """The signal that Jupyter, Colab and a terminal send, in the middle of fit."""
    folder = shutil.copytree(small_run[2], tmp_path / "output")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(NOTEBOOK),
        str(tmp_path / "n.ipynb"),
    ]
    command += ["--log-output", "-p", "output_dir", str(folder)]
    # What a shell runs in the background ignores the signal, and so would its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        log = iter(process.stderr.readline, "")
        assert any("val_accuracy" in line for line in log)
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        process.stderr.read()
    assert process.returncode != 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
