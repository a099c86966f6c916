"""Small data and a small training, shared by the tests."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "tools"))
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # what is held to the bit is held on a CPU
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
from notebook import DATA, REPOSITORY, run_cells


@pytest.fixture(scope="session")
def mnist():
    """The published arrays by name."""
    with np.load(DATA, allow_pickle=False) as archive:
        return dict(archive)


@pytest.fixture(scope="session")
def small_arrays(mnist):
    """The first 640 training and 200 test images, with their labels."""
    return {name: a[: 640 if "train" in name else 200] for name, a in mnist.items()}


@pytest.fixture(scope="session")
def small_data(small_arrays, tmp_path_factory):
    """An npz of the small arrays."""
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez_compressed(path, **small_arrays)
    return path


@pytest.fixture(scope="session")
def first(small_data):
    """The namespace of a training with seed 0, which no test may change."""
    return run_cells("train", data_path=str(small_data), epochs=2)


@pytest.fixture
def cells(first):
    """A namespace to go on from."""
    return first | {"record": dict(first["record"])}


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    """Run each test where the README's commands run."""
    monkeypatch.chdir(REPOSITORY)
