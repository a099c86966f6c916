"""Bad input: one clear error before any training, and nothing lost of a good run."""

import io
import pickle
import zipfile

import numpy as np
import papermill
import pytest
from notebook import run_cell, run_cells, run_notebook

FIELDS = "stages, activation, first_kernel"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"recipe": "fast"}, "No recipe 'fast': choose from assignment"),
        ({"recipe": 3}, "recipe is 3, of type int: give a value of type str"),
        ({"seed": "a"}, "seed is 'a', of type str: give a value of type int"),
        ({"seed": 1.5}, "seed is 1.5, of type float: give a value of type int"),
        ({"seed": -1}, "seed is -1: give a number from 0 to"),
        ({"epochs": True}, "epochs is True, of type bool: give a value of type int"),
        ({"epochs": -1}, "epochs is -1: give a number from 0 to 20"),
        ({"epochs": 21}, "epochs is 21: give a number from 0 to 20"),
        ({"holdout": -5}, "holdout is -5: give a number from 0"),
        ({"holdout": 60_000}, "holdout is 60000: give less than the 60000 images"),
        ({"overrides": [1]}, "overrides is .*: give a value of type dict"),
        ({"overrides": {"rate": 1}}, f"overrides has no field 'rate': .* {FIELDS}"),
        ({"overrides": {"peak_rate": "high"}}, "give a value of type float"),
        ({"overrides": {"peak_rate": -1}}, "peak_rate is -1: give a number from"),
        ({"overrides": {"peak_rate": float("nan")}}, "peak_rate is nan: give a number"),
        ({"overrides": {"epochs": 21}}, "epochs is 21: give a number from 1 to 20"),
        ({"overrides": {"batch_size": 0}}, "batch_size is 0: give a number from 1"),
        ({"overrides": {"activation": "swoosh"}}, "No activation 'swoosh': choose"),
        ({"overrides": {"views": 1}}, "of type int: give a value of type bool"),
        ({"overrides": {"stages": [[]]}}, "stages has .*: give filters"),
        ({"overrides": {"stages": []}}, "stages is empty: give filters"),
        ({"overrides": {"stages": [[16, -1]]}}, "stages has .*: give filters"),
        ({"overrides": {"stages": [[10**6, 10**6]]}}, "stages has .*: give filters"),
        ({"data_path": "a" * 300}, "is no file: name an npz file"),
        ({"output_dir": "a\0b"}, "output_dir .* cannot be written"),
        ({"overrides": {"stages": [16]}}, "give a value of type tuple"),
        ({"overrides": {"stages": [[4]] * 4}}, "stages are 4: .* at most 3"),
        ({"overrides": {"stages": [[120, 120]]}}, "stay below 15,000"),
        ({"data_path": 1}, "data_path is 1, of type int: give a value of type str"),
        ({"output_dir": "requirements.txt"}, "output_dir .* cannot be written"),
        ({"output_dir": "requirements.txt/x"}, "output_dir .* cannot be written"),
    ],
    ids=str,
)
def test_a_bad_parameter_ends_in_one_sentence(parameters, message):
    with pytest.raises(ValueError, match=message):
        run_cells("compile", **parameters)


def test_a_parameter_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"No parameter \['sede'\]: choose from"):
        run_notebook(tmp_path / "run.ipynb", {"sede": 1})


def test_the_notebook_itself_refuses_it_too():
    """papermill run by hand only warns of it."""
    cells = run_cells("split")
    injected = "# Parameters\nepochs = 1\nsede = 1\n"
    with pytest.raises(ValueError, match=r"No parameter \['sede'\]"):
        cells["check_parameters"](cells, ["", injected])
    cells["check_parameters"](cells, ["", "sede = 1", "# Parameters\nepochs = 1\n"])


def archive_of(arrays, **changes):
    """Return the bytes of an npz of the arrays, changed; None leaves one out."""
    kept = {k: v for k, v in (arrays | changes).items() if v is not None}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **kept)
    return buffer.getvalue()


BAD_ARRAYS = {
    "lacks an array": ({"y_train": None}, "lacks the arrays"),
    "lacks the test images": ({"x_test": None}, "lacks the arrays"),
    "another shape": ({"x_train": np.zeros((640, 32, 32), "uint8")}, "give uint8"),
    "flat": ({"x_train": np.zeros((640, 784), "uint8")}, "give uint8"),
    "another type": ({"x_train": np.zeros((640, 28, 28), "int64")}, "give uint8"),
    "not a number": ({"x_train": np.full((640, 28, 28), np.nan)}, "give uint8"),
    "one-hot labels": ({"y_train": np.zeros((640, 10), "uint8")}, "give uint8"),
    "label 10": ({"y_train": np.full(640, 10, "uint8")}, "y_train holds 10"),
    "test label 10": ({"y_test": np.full(200, 10, "uint8")}, "y_test holds 10"),
    "fewer labels": ({"y_train": np.zeros(639, "uint8")}, "a label to each image"),
    "no examples": (
        {"x_train": np.zeros((0, 28, 28), "uint8"), "y_train": np.zeros(0, "uint8")},
        "a label to each image",
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
        message = r"cannot be used: .* Give an npz|The data hold"
        with pytest.raises(ValueError, match=message):
            run_cells("split", data_path=str(path))


def test_a_path_that_is_no_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing.npz"):
        with pytest.raises(ValueError, match="is no file: name an npz file"):
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
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    cells = run_cells("plumbing")

    def no_network(**_):
        raise OSError("no network")

    monkeypatch.setattr(cells["keras"].utils, "get_file", no_network)
    with pytest.raises(FileNotFoundError, match=r"put it at .*keras/datasets/mnist"):
        cells["find_data"]("")


def test_a_failed_run_leaves_an_earlier_one_as_it_was(small_run, small_data, tmp_path):
    _, _, folder = small_run
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    parameters = {"data_path": str(small_data), "output_dir": str(folder), "epochs": 21}
    with pytest.raises(papermill.PapermillExecutionError, match="epochs is 21"):
        run_notebook(tmp_path / "run.ipynb", parameters)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_results_are_written_whole_or_not_at_all(small_data, tmp_path):
    """Writing breaks off after the model and the record were written."""
    folder = tmp_path / "output"
    parameters = {"data_path": str(small_data), "output_dir": str(folder), "epochs": 1}
    cells = run_cells("record", **parameters)
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
    with pytest.raises(ValueError, match=r"not a number any more: lower .* peak_rate"):
        run_cell("fit", cells)
