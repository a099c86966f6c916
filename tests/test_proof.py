"""The claims that a reader should not have to believe: tried here, to break them."""

import numpy as np
import pytest
from runner import run_cells


def train(path, **parameters):
    """Train on the npz at the path and return the final weights and the history."""
    cells = run_cells("fit", data_path=str(path), epochs=2, **parameters)
    return cells["model"].get_weights(), cells["history"]


def same(left, right):
    """Tell whether two lists of weights are equal to the bit."""
    return all(a.tobytes() == b.tobytes() for a, b in zip(left, right, strict=True))


@pytest.fixture(scope="module")
def reference(small_data):
    """The weights and the history of seed 0 on the small data."""
    return train(small_data)


def test_the_test_set_decides_nothing(reference, small_arrays, tmp_path):
    """Test labels shuffled and test images replaced by noise: the same weights."""
    random = np.random.default_rng(1)
    noise = random.integers(0, 256, small_arrays["x_test"].shape, dtype="uint8")
    labels = random.permutation(small_arrays["y_test"])
    path = tmp_path / "noise.npz"
    np.savez(path, **(small_arrays | {"x_test": noise, "y_test": labels}))
    weights, history = train(path)
    assert same(weights, reference[0])
    assert history["loss"] == reference[1]["loss"]
    assert history["val_loss"] != reference[1]["val_loss"]


def test_a_seed_repeats_to_the_bit(reference, small_data):
    weights, history = train(small_data)
    assert same(weights, reference[0])
    assert history == reference[1]


def test_another_seed_gives_another_net(reference, small_data):
    weights, history = train(small_data, seed=1)
    assert not same(weights, reference[0])
    assert history["loss"] != reference[1]["loss"]
    assert history["learning_rate"] == reference[1]["learning_rate"]


def test_another_seed_starts_from_other_weights(small_data):
    first, second = (
        run_cells("rules", data_path=str(small_data), seed=seed)["model"]
        for seed in (0, 1)
    )
    assert not same(first.get_weights(), second.get_weights())


def test_a_holdout_run_ignores_poisoned_test_arrays(small_arrays, tmp_path):
    poison = {"x_test": np.full(3, np.nan), "y_test": np.array([{}], dtype=object)}
    train_only = {k: v for k, v in small_arrays.items() if "train" in k}
    np.savez(tmp_path / "poisoned.npz", **(small_arrays | poison))
    np.savez(tmp_path / "train.npz", **train_only)
    poisoned = train(tmp_path / "poisoned.npz", holdout=100)
    alone = train(tmp_path / "train.npz", holdout=100)
    assert same(poisoned[0], alone[0])
    assert poisoned[1] == alone[1]


def test_the_weights_of_the_last_epoch_are_evaluated(small_data):
    """The last line of the log is of the net whose three looks are averaged."""
    cells = run_cells("evaluate", data_path=str(small_data), epochs=2)
    model, images = cells["model"], cells["x_valid"]
    looks = [model.predict(images, verbose=0)]
    right = looks[0].argmax(axis=1) == cells["valid_labels"]
    assert right.mean() == pytest.approx(cells["history"]["val_accuracy"][-1])
    for pixel in (-1, 1):
        moved = np.roll(images, (pixel, pixel), axis=(1, 2))
        looks.append(model.predict(moved, verbose=0))
    logits = cells["averaged"].predict(images, verbose=0)
    assert np.allclose(logits, np.mean(looks, axis=0), atol=1e-4)
    right = logits.argmax(axis=1) == cells["valid_labels"]
    assert right.mean() == pytest.approx(cells["accuracy"])
    assert cells["averaged"].count_params() == model.count_params()
