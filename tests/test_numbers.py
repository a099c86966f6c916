"""The computations behind the numbers: checksum, augmentation, rate."""

import hashlib

import keras
import numpy as np
import pytest
from runner import run_cells

PUBLISHED = {  # MD5 sums of the four IDX files, as the makers of MNIST published them
    "x_train": "6bbc9ace898e44ae57da46a324031adb",
    "y_train": "a25bea736e30d166cdddb491f175f624",
    "x_test": "2646ac647ad5339dbf082846283269ea",
    "y_test": "27ae3e4e09519cfbb04c329615203637",
}


@pytest.fixture(scope="module")
def cells(small_data):
    """The notebook's namespace before training, on the small data."""
    return run_cells("compile", data_path=str(small_data), epochs=2)


def test_the_repository_holds_the_published_mnist(mnist):
    for name, array in mnist.items():
        sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
        content = bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()
        assert hashlib.md5(content).hexdigest() == PUBLISHED[name]


def test_the_notebook_knows_the_published_mnist(cells, mnist):
    for part in ("train", "test"):
        images, labels = mnist[f"x_{part}"], mnist[f"y_{part}"].copy()
        assert cells["is_published"](images, labels, part)
        labels[0] += 1
        assert not cells["is_published"](images, labels, part)


def augment(cells, images, seen=0.0, **changes):
    """Return the images as augmented with all limits zero but the changes."""
    limits = dict.fromkeys(("rotation", "stretch", "shift"), 0.0) | changes
    recipe = cells["settings"].model_copy(update=limits)
    layer = cells["RandomAffine"](recipe, steps=100, seed=3)
    layer.step.assign(seen)
    return keras.ops.convert_to_numpy(layer(images, training=True))


def test_without_limits_the_augmentation_changes_nothing(cells):
    images = cells["x_train"][:32]
    assert np.allclose(augment(cells, images), images, atol=1e-5)


def test_the_augmentation_is_idle_outside_training(cells):
    images = cells["x_train"][:32]
    layer = cells["RandomAffine"](cells["settings"], steps=100, seed=3)
    assert np.array_equal(keras.ops.convert_to_numpy(layer(images)), images)


def moved(cells, **changes):
    """Return by how many pixels the images' centers of mass move, (2, n)."""

    def center_of_mass(images):
        weights = images[..., 0] / images.sum(axis=(1, 2, 3))[:, None, None]
        grid = np.arange(images.shape[1])
        return np.array([weights.sum(axis=2) @ grid, weights.sum(axis=1) @ grid])

    images = cells["x_train"][:256]
    return np.abs(
        center_of_mass(augment(cells, images, **changes)) - center_of_mass(images)
    )


def test_the_augmentation_shifts_within_its_limit(cells):
    distance = moved(cells, shift=2.0)
    assert distance.max() < 2.05
    assert distance.mean() == pytest.approx(1, abs=0.1)


def test_the_augmentation_fades(cells):
    early, late = moved(cells, shift=2.0, seen=10.0), moved(cells, shift=2.0, seen=95.0)
    assert late.mean() < 0.5 * early.mean()


def test_the_augmentation_turns_about_the_center(cells):
    """A disc in the middle stays, and what lies outside of it moves along a circle."""
    grid = np.arange(28) - 13.5
    distance = np.hypot(grid[:, None], grid[None])
    disc = np.exp(-((distance / 5) ** 2))[None, ..., None].astype("float32")
    assert np.allclose(augment(cells, disc, rotation=45.0), disc, atol=0.05)
    wide = np.exp(-((grid[:, None] / 6) ** 2) - (grid[None] / 2) ** 2)
    wide = wide[None, ..., None].astype("float32")
    assert np.abs(augment(cells, wide, rotation=45.0) - wide).max() > 0.1


def test_the_augmentation_stretches_and_shears_about_the_center(cells):
    """The disc stays where it is, becomes wider or narrower, and leans."""
    grid = np.arange(28) - 13.5
    disc = np.exp(-(grid[:, None] ** 2 + grid[None] ** 2) / 30)[None, ..., None]
    disc = np.repeat(disc.astype("float32"), 64, axis=0)
    stretched = augment(cells, disc, stretch=0.2)
    columns = stretched[..., 0].sum(axis=1)
    assert np.abs((columns @ grid) / columns.sum(axis=1)).max() < 0.05
    width = np.sqrt((columns @ grid**2) / columns.sum(axis=1))
    assert width.std() > 0.1
    lean = np.einsum("nij,i,j->n", stretched[..., 0], grid, grid)
    assert (lean / columns.sum(axis=1)).std() > 0.5


def test_the_rate_rises_to_its_peak_and_falls_to_nothing(cells):
    steps, warm_up = cells["steps"], cells["warm_up"]
    rates = [float(cells["schedule"](step)) for step in range(steps + 1)]
    assert max(rates) == pytest.approx(cells["settings"].learning_rate, rel=0.02)
    assert rates.index(max(rates)) == warm_up
    assert rates[-1] == pytest.approx(0, abs=1e-6)
    assert rates[warm_up:] == sorted(rates[warm_up:], reverse=True)


def test_keras_does_not_compile_what_tensorflow_cannot(cells):
    """On a GPU Keras would try XLA, for which the image transform has no kernel."""
    augmentation = cells["learner"].layers[0]
    assert augmentation.supports_jit == (keras.backend.backend() == "jax")
    assert cells["learner"].jit_compile is False


def test_muon_trains_the_kernels_that_mix_channels_and_adam_the_others(cells):
    chosen = [
        variable.name
        for variable in cells["model"].trainable_variables
        if not cells["learner"].optimizer._should_use_adamw(variable)
    ]
    assert chosen == ["pointwise_kernel"] * 3


def test_muon_makes_each_matrix_of_a_kernel_orthogonal(cells):
    """Keras takes (height, width, inputs, filters) for height times width matrices."""
    kernel = np.random.default_rng(0).normal(size=(3, 3, 16, 24)).astype("float32")
    optimizer = cells["learner"].optimizer
    step = optimizer.lr_adjust(optimizer.zeropower_via_newtonschulz5(kernel, 5))
    values = np.linalg.svd(keras.ops.convert_to_numpy(step), compute_uv=False)
    assert values.min() > 0.6
    assert values.max() < 1.3
