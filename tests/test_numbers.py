"""The computations behind the numbers: interval, checksums, augmentation, rate."""

import hashlib
import math

import keras
import numpy as np
import pytest
from notebook import run_cells, run_definitions


@pytest.fixture(scope="module")
def cells(small_data):
    """The notebook's namespace before training, on the small data."""
    return run_cells("compile", data_path=str(small_data), epochs=2)


def test_wilson_as_published():
    """9,943 of 10,000, the interval that chance alone gives one run of 99.43 %."""
    namespace = {"math": math}
    run_definitions("evaluate", namespace)
    low, high = namespace["wilson"](9_943, 10_000)
    assert (round(low, 4), round(high, 4)) == (0.9926, 0.9956)
    assert namespace["wilson"](0, 10)[0] == pytest.approx(0, abs=1e-12)
    assert namespace["wilson"](10, 10)[1] == pytest.approx(1)


def test_the_repository_holds_the_published_mnist(cells, mnist):
    for name, array in mnist.items():
        assert cells["idx_md5"](array) == cells["PUBLISHED"][name]
    changed = mnist["y_test"].copy()
    changed[0] += 1
    assert cells["idx_md5"](changed) != cells["PUBLISHED"]["y_test"]


def test_the_checksum_is_that_of_an_idx_file(cells):
    array = np.arange(6, dtype="uint8").reshape(1, 2, 3)
    content = bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, *range(6)])
    assert cells["idx_md5"](array) == hashlib.md5(content).hexdigest()


def augment(cells, images, **changes):
    """Return the images as augmented with all limits zero but the changes."""
    still = dict.fromkeys(("rotation", "stretch", "shear", "shift"), 0.0)
    settings = cells["apply_overrides"](cells["settings"], still | changes)
    layer = cells["RandomAffine"](settings, 3)
    return keras.ops.convert_to_numpy(layer(images, training=True))


def test_without_limits_the_augmentation_changes_nothing(cells):
    images = cells["x_train"][:32]
    assert np.allclose(augment(cells, images), images, atol=1e-5)


def test_the_augmentation_is_idle_outside_training(cells):
    images = cells["x_train"][:32]
    layer = cells["RandomAffine"](cells["settings"], 3)
    assert np.array_equal(keras.ops.convert_to_numpy(layer(images)), images)


def center_of_mass(images):
    """Return the rows and columns of the images' centers of mass."""
    weights = images[..., 0] / images.sum(axis=(1, 2, 3))[:, None, None]
    grid = np.arange(images.shape[1])
    return weights.sum(axis=2) @ grid, weights.sum(axis=1) @ grid


def test_the_augmentation_shifts_within_its_limit(cells):
    images = cells["x_train"][:256]
    before = center_of_mass(images)
    after = center_of_mass(augment(cells, images, shift=2.0))
    moved = np.abs(np.array(after) - np.array(before))
    assert moved.max() < 2.05
    assert moved.mean() == pytest.approx(1, abs=0.1)


def test_the_augmentation_turns_about_the_center(cells):
    """A disc in the middle stays, and what lies outside of it moves along a circle."""
    grid = np.arange(28) - 13.5
    distance = np.hypot(grid[:, None], grid[None])
    disc = np.exp(-((distance / 5) ** 2))[None, ..., None].astype("float32")
    assert np.allclose(augment(cells, disc, rotation=45.0), disc, atol=0.05)
    wide = np.exp(-((grid[:, None] / 6) ** 2) - (grid[None] / 2) ** 2)
    wide = wide[None, ..., None].astype("float32")
    assert np.abs(augment(cells, wide, rotation=45.0) - wide).max() > 0.1


def test_the_rate_rises_to_its_peak_and_falls_to_nothing(cells):
    steps, schedule = cells["steps"], cells["schedule"]
    rates = [float(schedule(step)) for step in range(steps + 1)]
    assert max(rates) == pytest.approx(cells["settings"].peak_rate, rel=0.02)
    assert rates.index(max(rates)) == cells["warm_up"]
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0, abs=1e-6)
    assert rates[cells["warm_up"] :] == sorted(rates[cells["warm_up"] :], reverse=True)


def test_the_table_of_layers_adds_up(cells):
    network = cells["network"]
    rows = {name: row for name, *row in cells["describe_layers"](network)}
    assert sum(row[2] for row in rows.values()) == network.count_params()
    shape, _, parameters, work = rows["classes"]
    assert parameters == work / (shape[0] * shape[1])


def test_muon_takes_the_kernels_that_are_matrices(cells):
    optimizer, network = cells["optimizer"], cells["network"]
    by_adam = {
        variable.path
        for variable in network.trainable_variables
        if optimizer._should_use_adamw(variable)
    }
    first = network.layers[1].kernel.path
    left = {"gamma", "depthwise_kernel"}
    scales = {v.path for v in network.trainable_variables if v.name in left}
    assert by_adam == {first, "classes/kernel", *scales}
    assert len(by_adam) < len(network.trainable_variables)


def test_muon_steps_are_orthogonal(cells):
    """The five steps of Newton and Schulz bring every singular value near one."""
    random = np.random.default_rng(0).normal(size=(3, 3, 16, 16)).astype("float32")
    step = cells["optimizer"].zeropower_via_newtonschulz5(
        keras.ops.convert_to_tensor(random), 5
    )
    assert step.shape == random.shape
    matrix = keras.ops.convert_to_numpy(step).reshape(-1, 16)
    values = np.linalg.svd(matrix, compute_uv=False)
    assert 0.6 < values.min() < values.max() < 1.3


def test_keras_does_not_compile_what_tensorflow_cannot(cells):
    """On a GPU Keras would try XLA, for which the image transform has no kernel."""
    assert cells["learner"].augment.supports_jit == (keras.backend.backend() == "jax")
    assert cells["learner"].jit_compile is False
