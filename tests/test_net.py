"""The network and how it is trained: rules, augmentation, optimizer, loss."""

import math

import keras
import numpy as np
import pytest
from keras import layers, ops
from notebook import definitions, settings_of
from scipy import ndimage


def network_of(recipe, cells):
    """Return a new network of the recipe, by the functions in cells."""
    return cells["build_model"](cells["Settings"](**settings_of(recipe)))


@pytest.mark.parametrize("recipe", definitions()["RECIPES"])
def test_every_recipe_keeps_the_rules(cells, recipe):
    """Black in, zero out: nothing is added (a new network's moving means are zero)."""
    network, random = network_of(recipe, cells), np.random.default_rng(0)
    cells["check_rules"](network)
    names = {variable.name for variable in network.trainable_variables}
    assert names == {"kernel", "depthwise_kernel", "pointwise_kernel"}
    for variable in network.trainable_variables:
        variable.assign(random.normal(size=variable.shape))
    black = np.zeros((1, 28, 28, 1), "float32")
    assert np.abs(network.predict(black, verbose=0)).max() < 1e-6


POOL = layers.GlobalAveragePooling2D()


@pytest.mark.parametrize(("net", "message"), [
    ([layers.BatchNormalization(scale=False), POOL], "kernels: not .*/beta"),
    ([layers.Dense(10, use_bias=False), POOL], "kernels: not .*dense.*/kernel"),
    ([layers.Flatten()], "End on GlobalAveragePooling2D"),
    ([layers.Conv2D(600, 5, use_bias=False), POOL], "15,000 parameters are too many"),
])  # fmt: skip
def test_the_check_stops_a_broken_rule(cells, net, message):
    with pytest.raises(ValueError, match=message):
        cells["check_rules"](keras.Sequential([keras.Input((28, 28, 1)), *net]))


def dot(column, row):
    """Return an image (1, 28, 28, 1), its dot so far right of and below the center."""
    grid = np.arange(28) - 13.5
    distance = (grid[:, None] - row) ** 2 + (grid[None] - column) ** 2
    return np.exp(-distance / 4)[None, ..., None].astype("float32")


def places(images):
    """Return the centers of mass (n, 2), in pixels right of and below the center."""
    images = ops.convert_to_numpy(images)[..., 0]
    return np.array([ndimage.center_of_mass(image)[::-1] for image in images]) - 13.5


TURNED = np.exp(-1j * math.radians(30)) * (6 + 2j)


@pytest.mark.parametrize(("rotation", "stretch", "shift", "expected"), [
    (0.0, 0.0, 0, (6, 2)),
    (30.0, 0.0, 0, (TURNED.real, TURNED.imag)),
    (0.0, 0.1, 0, np.linalg.solve(np.eye(2) + 0.1, (6, 2))),
    (0.0, 0.0, 1, (5, 1)),
])  # fmt: skip
def test_a_dot_moves_as_far_as_it_may(cells, rotation, stretch, shift, expected):
    class AtLimit(cells["RandomAffine"]):
        """Draws no random number but the limit; of the shift, 0 or 1 times it."""

        def draw(self, limit, *shape):
            return ops.full(shape, limit * (shift if shape[1:] == (2, 1) else 1))

    moved = places(AtLimit(rotation, stretch, 100, 0)(dot(6, 2)))
    assert moved[0] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("done, strength", [(0, 1), (699, 1), (849, 0.5), (999, 0.2)])
def test_the_strength_decays_to_a_fifth_over_the_last_steps(cells, done, strength):
    """Of a thousand; seen at the shift of many images, which is up to one pixel."""
    layer = cells["RandomAffine"](0.0, 0.0, 1_000, 3)
    layer.step.assign(done)
    moved = places(layer(dot(0, 0).repeat(500, axis=0)))
    for extreme in (moved.max(axis=0), -moved.min(axis=0)):
        assert extreme == pytest.approx([strength] * 2, rel=0.03)


def test_a_seed_repeats_its_images_and_each_epoch_has_its_own(cells):
    layers = [cells["RandomAffine"](10.0, 0.1, 1_000, seed) for seed in (0, 0, 1)]
    images = cells["x_train"][:8]
    first, again, other, next_epoch = (layer(images) for layer in (*layers, layers[0]))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, next_epoch)


def test_a_learner_trains_on_augmented_halves(cells):
    """Each half is normalized by itself; outside training there is but the network."""
    images, network = cells["x_train"][:15], network_of("assignment", cells)
    learner = cells["Learner"](network, lambda images: images[:, ::-1])
    assert np.array_equal(learner(images), network(images))
    trained = learner(images, training=True)
    halves = images[:7, ::-1], images[7:, ::-1]
    expected = np.concatenate([network(half, training=True) for half in halves])
    assert np.allclose(trained, expected, atol=1e-5)


def test_muon_steps_the_kernels_that_mix_channels_and_adam_the_others(cells):
    """One real update: Muon's has singular values near 1, Adam's first only signs."""
    changes = {"batch_size": 640, "epochs": 1}
    settings = cells["settings"].model_copy(update=changes)
    learner = cells["compile_learner"](settings)
    kernels = learner.network.trainable_variables
    before = [ops.convert_to_numpy(kernel) for kernel in kernels]
    learner.fit(cells["x_train"], cells["y_train"], batch_size=640, verbose=0)
    for kernel, old in zip(kernels, before, strict=True):
        step = (ops.convert_to_numpy(kernel) - old) / settings.learning_rate
        if kernel.name == "pointwise_kernel":
            values = np.linalg.svd(step[0, 0], compute_uv=False)
            assert np.quantile(values, 0.1) > 0.3  # a gradient can lack some
            assert values.max() < 1.4
        else:
            sizes = np.quantile(np.abs(step), [0.5, 0.9])
            assert sizes == pytest.approx(0.2, rel=0.01)


def test_the_rate_falls_along_a_line_to_zero_at_the_last_step(cells):
    """640 images in batches of 128, two epochs: ten steps."""
    optimizer = cells["compile_learner"](cells["settings"]).optimizer
    rates = []
    for step in range(11):
        optimizer.iterations.assign(step)
        rates.append(float(optimizer.learning_rate))
    start = cells["settings"].learning_rate
    assert rates == pytest.approx(np.linspace(start, 0, 11), abs=1e-6)


def test_labels_are_smoothed(cells):
    """An answer like the smoothed label has the least loss, the label's entropy."""
    learner = cells["compile_learner"](cells["settings"])
    label = np.eye(10, dtype="float32")[:1]
    logits = ops.log(label * 0.9 + 0.01)
    for model in (learner, learner.network):
        loss = model.compute_loss(y=label, y_pred=logits)
        assert float(loss) == pytest.approx(0.5003, abs=1e-3)
