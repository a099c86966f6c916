"""The network and how it is trained: rules, augmentation, optimizer, loss."""

import math

import keras
import numpy as np
import pytest
from keras import layers, ops
from notebook import run_cell, run_cells
from scipy import ndimage

FILTERS = [16, 32, 56, 72, 72]


def test_the_network_keeps_the_rules(cells):
    """Black in, zero out: nothing is added (a new network's moving means are zero)."""
    network, random = cells["build_network"](FILTERS), np.random.default_rng(0)
    names = {variable.name for variable in network.trainable_variables}
    assert names == {"kernel", "depthwise_kernel", "pointwise_kernel"}
    for variable in network.trainable_variables:
        variable.assign(random.normal(size=variable.shape))
    black = np.zeros((1, 28, 28, 1), "float32")
    assert np.abs(network.predict(black, verbose=0)).max() < 1e-6


POOL = layers.GlobalAveragePooling2D()


@pytest.mark.parametrize(("net", "broken"), [
    ([layers.BatchNormalization(scale=False), POOL], "only convolution kernels"),
    ([layers.Dense(10, use_bias=False), POOL], "only convolution kernels"),
    ([layers.Conv2D(10, 28, use_bias=False), layers.Flatten()], "no dense layer"),
    ([layers.Conv2D(600, 5, use_bias=False), POOL], "15,000 parameters, fewer than"),
    ([layers.Conv2D(10, 5, use_bias=False), POOL], None),
])  # fmt: skip
def test_the_rules_are_printed_and_a_broken_one_stops(cells, net, broken, capsys):
    net = [keras.Input((28, 28, 1)), *net]
    cells["build_network"] = lambda filters: keras.Sequential(net)
    if broken:
        with pytest.raises(ValueError, match="A rule of the assignment is broken"):
            run_cell("rules", cells)
    else:
        run_cell("rules", cells)
    lines = capsys.readouterr().out.splitlines()
    stated = [line for line in lines if line.startswith(("kept: ", "BROKEN: "))]
    assert len(stated) == 4
    told = [line for line in stated if line.startswith("BROKEN")]
    assert [broken in line for line in told] == ([True] if broken else [])


def dot(column, row):
    """Return an image (1, 28, 28, 1), its dot so far right of and below the center."""
    grid = np.arange(28) - 13.5
    distance = (grid[:, None] - row) ** 2 + (grid[None] - column) ** 2
    return np.exp(-distance / 4)[None, ..., None].astype("float32")


def places(images):
    """Return the centers of mass (n, 2), in pixels right of and below the center."""
    images = ops.convert_to_numpy(images)[..., 0]
    return np.array([ndimage.center_of_mass(image)[::-1] for image in images]) - 13.5


def slants(images):
    """Return the slants (n,) of images (n, 28, 28): covariance over row's variance."""
    rows, columns = np.mgrid[:28, :28]
    moments = [
        np.cov(rows.ravel(), columns.ravel(), aweights=i.ravel()) for i in images
    ]
    return np.array([moment[0, 1] / moment[0, 0] for moment in moments])


def test_deskewed_digits_are_centered_and_do_not_lean(cells):
    images = cells["images"][:100, ..., None] / np.float32(255)
    upright = ops.convert_to_numpy(cells["deskew"](images))
    assert np.abs(slants(images[..., 0])).mean() > 0.2
    assert np.abs(slants(upright[..., 0])).mean() < 0.02
    assert np.abs(places(upright)).max() < 0.1
    assert np.allclose(upright.sum(axis=(1, 2)), images.sum(axis=(1, 2)), rtol=0.02)
    blank = ops.convert_to_numpy(cells["deskew"](np.zeros_like(images)))
    assert not blank.any()


def test_deskewing_is_a_setting_that_the_saved_network_keeps(small_data, tmp_path):
    """What it reads is not deskewed, and it needs no code but Keras' own."""
    given = {"data_path": str(small_data), "epochs": 1}
    plain = run_cells("deskew", **given)
    assert np.array_equal(plain["x_train"][..., 0] * 255, plain["images"])
    cells = run_cells("train", overrides={"deskew": True}, **given)
    expected = cells["deskew"](plain["x_train"])
    assert np.allclose(cells["x_train"], expected, atol=1e-6)
    cells["model"].save(tmp_path / "CODE9.keras")
    network = keras.saving.load_model(tmp_path / "CODE9.keras")
    logits = network.predict(plain["x_evaluation"], verbose=0)
    assert np.allclose(logits, cells["logits"], atol=1e-4)


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

    moved = places(AtLimit(rotation, stretch, 100, 0)(dot(6, 2), training=True))
    assert moved[0] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("done, strength", [(0, 1), (699, 1), (849, 0.5), (999, 0.2)])
def test_the_strength_decays_to_a_fifth_over_the_last_steps(cells, done, strength):
    """Of a thousand; seen at the shift of many images, which is up to one pixel."""
    layer = cells["RandomAffine"](0.0, 0.0, 1_000, 3)
    layer.step.assign(done)
    moved = places(layer(dot(0, 0).repeat(500, axis=0), training=True))
    for extreme in (moved.max(axis=0), -moved.min(axis=0)):
        assert extreme == pytest.approx([strength] * 2, rel=0.03)


def test_a_seed_repeats_its_images_and_each_epoch_has_its_own(cells):
    layers = [cells["RandomAffine"](10.0, 0.1, 1_000, seed) for seed in (0, 0, 1)]
    layers, images = [*layers, layers[0]], cells["x_train"][:8]
    first, again, other, next_epoch = (layer(images, training=True) for layer in layers)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, next_epoch)


def test_the_model_trains_on_augmented_images_and_is_evaluated_on_given_ones(cells):
    """The augmentation is as strong, and decays as fast, as the settings say."""
    model, images = cells["compile_model"](cells["settings"], 640), cells["x_train"]
    augment, network = model.layers
    recipe = cells["recipe"]
    assert augment.rotation == pytest.approx(math.radians(recipe.rotation))
    assert (augment.stretch, augment.steps) == (recipe.stretch, 10)
    assert np.array_equal(model(images[:9]), network(images[:9]))
    fresh = cells["RandomAffine"](recipe.rotation, recipe.stretch, 10, 0)
    changed = fresh(images[:9], training=True)
    assert np.abs(changed - images[:9]).mean() > 0.01
    logits = network(changed, training=True)  # normalized by this batch, as next
    assert np.allclose(model(images[:9], training=True), logits, atol=1e-5)


def test_each_step_of_a_training_is_counted(first):
    """Five batches in each of two epochs, whatever an execution takes at once."""
    assert float(first["training"].layers[0].step) == 10
    assert int(first["training"].optimizer.iterations) == 10


def test_muon_steps_the_kernels_that_mix_channels_and_adam_the_others(cells):
    """One real update: Muon's has singular values near 1, Adam's first only signs."""
    settings = cells["settings"].model_copy(
        update={"overrides": cells["Recipe"](batch_size=640), "epochs": 1}
    )
    model = cells["compile_model"](settings, 640)
    kernels = model.layers[-1].trainable_variables
    before = [ops.convert_to_numpy(kernel) for kernel in kernels]
    model.fit(cells["x_train"], cells["y_train"], batch_size=640, verbose=0)
    for kernel, old in zip(kernels, before, strict=True):
        step = (ops.convert_to_numpy(kernel) - old) / settings.overrides.learning_rate
        if kernel.name == "pointwise_kernel":
            values = np.linalg.svd(step[0, 0], compute_uv=False)
            assert np.quantile(values, 0.1) > 0.3  # a gradient can lack some
            assert values.max() < 1.4
        else:
            sizes = np.quantile(np.abs(step), [0.5, 0.9])
            assert sizes == pytest.approx(0.2, rel=0.01)


def test_the_rate_falls_along_a_line_to_zero_at_the_last_step(cells):
    """640 images in batches of 128, two epochs: ten steps."""
    optimizer = cells["compile_model"](cells["settings"], 640).optimizer
    rates = []
    for step in range(11):
        optimizer.iterations.assign(step)
        rates.append(float(optimizer.learning_rate))
    start = cells["recipe"].learning_rate
    assert rates == pytest.approx(np.linspace(start, 0, 11), abs=1e-6)


def test_labels_are_smoothed(cells):
    """An answer like the smoothed label has the least loss, the label's entropy."""
    model = cells["compile_model"](cells["settings"], 640)
    label = np.eye(10, dtype="float32")[:1]
    logits = ops.log(label * 0.9 + 0.01)
    loss = model.compute_loss(y=label, y_pred=logits)
    assert float(loss) == pytest.approx(0.5003, abs=1e-3)
