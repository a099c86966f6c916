"""The network and how it is trained: rules, augmentation, optimizer, loss."""

import math

import keras
import numpy as np
import pytest
from keras import Input, Model, layers, ops
from notebook import recipes, run_cells, settings_of


def network_of(recipe, cells):
    """Return a new network of the recipe, by the functions in cells."""
    return cells["build_model"](cells["Settings"](**settings_of(recipe)))


def answer_to_black(network):
    """Return the largest logit of a black image, all that is trained set at random."""
    random = np.random.default_rng(0)
    for variable in network.trainable_variables:
        variable.assign(random.normal(size=variable.shape))
    black = np.zeros((1, 28, 28, 1), "float32")
    return np.abs(network.predict(black, verbose=0)).max()


@pytest.mark.parametrize("recipe", recipes())
def test_every_recipe_keeps_the_rules(cells, recipe):
    """Black in, zero out: nothing is added (a new network's moving means are zero)."""
    network = network_of(recipe, cells)
    cells["check_rules"](network)
    names = {variable.name for variable in network.trainable_variables}
    assert names == {"kernel", "depthwise_kernel", "pointwise_kernel"}
    assert answer_to_black(network) < 1e-6


@pytest.mark.parametrize("off", ["use_bias=False", "normalize(center=False"])
def test_black_in_zero_out_would_show_what_is_added(off):
    edits = {off: off.replace("False", "True")}
    cells = run_cells("model", edits=edits, skip=("load", "split", "digits"))
    assert answer_to_black(network_of("assignment", cells)) > 0.1


def broken_network(kind):
    """Return a small network that breaks the rule named kind."""
    image = Input((28, 28, 1))
    if kind == "size":  # of exactly 15,000 parameters
        x = layers.Conv2D(600, 5, use_bias=False)(image)
        return Model(image, layers.GlobalAveragePooling2D()(x))
    x = layers.Conv2D(10, 24, use_bias=kind == "bias")(image)
    x = layers.BatchNormalization(center=kind == "beta", scale=False)(x)
    if kind == "flatten":
        return Model(image, layers.Flatten()(x))
    if kind == "dense":
        x = layers.Dense(10, use_bias=False)(x)
    return Model(image, layers.GlobalAveragePooling2D()(x))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bias", r"nothing but convolution kernels: not \['conv2d.*/bias'\]"),
        ("beta", r"nothing but convolution kernels: not \['batch_norm.*/beta'\]"),
        ("dense", r"nothing but convolution kernels: not \['dense.*/kernel'\]"),
        ("flatten", "End on GlobalAveragePooling2D"),
        ("size", "15,000 parameters are too many"),
    ],
)
def test_the_check_stops_a_broken_rule(cells, kind, message):
    cells["check_rules"](broken_network("none"))
    with pytest.raises(ValueError, match=message):
        cells["check_rules"](broken_network(kind))


def dots(column, row, count=1):
    """Return images with one soft dot, so many pixels right of and below the center."""
    grid = np.arange(28) - 13.5
    distance = (grid[:, None] - row) ** 2 + (grid[None] - column) ** 2
    dot = np.exp(-distance / 4)[None, ..., None].astype("float32")
    return dot.repeat(count, axis=0)


def places(images):
    """Return the centers of mass (n, 2), in pixels right of and below the center."""
    grid = np.arange(28) - 13.5
    images = ops.convert_to_numpy(images)[..., 0]
    images = images / images.sum(axis=(1, 2), keepdims=True)
    return np.stack([images.sum(axis=1) @ grid, images.sum(axis=2) @ grid], axis=1)


def place_by_map(cells, rotation=0.0, stretch=0.0, shift=0.0):
    """Return where a dot at (6, 2) is moved when each draw is at its limit."""

    class AtLimit(cells["RandomAffine"]):
        """Draws no random number but the limit; shift is a fraction of its limit."""

        def draw(self, limit, *shape):
            limit = limit * (shift if shape[1:] == (2, 1) else 1)
            return ops.full(shape, limit)

    return places(AtLimit(rotation, stretch, 100, 0)(dots(6, 2)))[0]


def test_a_rotation_is_in_degrees(cells):
    turn = math.radians(30)
    cos, sin = math.cos(turn), math.sin(turn)
    expected = 6 * cos + 2 * sin, 2 * cos - 6 * sin
    assert place_by_map(cells, rotation=30.0) == pytest.approx(expected, abs=0.02)


def test_the_limits_of_stretch_and_shift(cells):
    expected = np.linalg.solve(np.eye(2) + 0.1, (6, 2))
    assert place_by_map(cells, stretch=0.1) == pytest.approx(expected, abs=0.02)
    assert place_by_map(cells, shift=1.0) == pytest.approx((5, 1), abs=0.02)
    assert place_by_map(cells) == pytest.approx((6, 2), abs=0.001)


@pytest.mark.parametrize(
    ("done", "strength"), [(0, 1.0), (699, 1.0), (849, 0.5), (999, 0.2)]
)
def test_the_strength_decays_to_a_fifth_over_the_last_steps(cells, done, strength):
    """Of a thousand; seen at the shift of many images, which is up to one pixel."""
    layer = cells["RandomAffine"](0.0, 0.0, 1_000, 3)
    layer.step.assign(done)
    moved = places(layer(dots(0, 0, 500)))
    for extreme in (moved.max(axis=0), -moved.min(axis=0)):
        assert extreme == pytest.approx([strength] * 2, rel=0.03)


def test_the_same_seed_gives_the_same_images(cells):
    def augmented(seed):
        layer = cells["RandomAffine"](10.0, 0.1, 1_000, seed)
        return [ops.convert_to_numpy(layer(cells["x_train"][:8])) for _ in range(2)]

    first, again, other = augmented(0), augmented(0), augmented(1)
    assert np.array_equal(first, again)
    assert not np.array_equal(first[0], first[1])  # each epoch has its own
    assert not np.array_equal(first, other)


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
    pointwise = 0
    for kernel, old in zip(kernels, before, strict=True):
        step = (ops.convert_to_numpy(kernel) - old) / settings.learning_rate
        matrix = step.reshape(-1, step.shape[-1])
        if kernel.name == "pointwise_kernel":
            values = np.linalg.svd(matrix, compute_uv=False)
            assert np.quantile(values, 0.1) > 0.3  # a gradient can lack some
            assert values.max() < 1.4
            pointwise += 1
        else:
            assert np.median(np.abs(step)) == pytest.approx(0.2, rel=0.01)
            assert np.quantile(np.abs(step), 0.9) == pytest.approx(0.2, rel=0.01)
    assert pointwise == 4


def test_the_rate_falls_along_a_line_to_zero_at_the_last_step(cells):
    """640 images in batches of 128, two epochs: ten steps."""
    optimizer = cells["compile_learner"](cells["settings"]).optimizer
    rates = []
    for step in range(11):
        optimizer.iterations.assign(step)
        rates.append(float(optimizer.learning_rate))
    start = cells["settings"].learning_rate
    assert rates == pytest.approx(np.linspace(start, 0, 11), abs=1e-6)


@pytest.mark.parametrize(("smoothing", "entropy"), [(0.1, 0.5003), (0.0, 0.0)])
def test_labels_are_smoothed(cells, smoothing, entropy):
    """An answer like the smoothed label has the least loss, the label's entropy."""
    changes = {"label_smoothing": smoothing}
    settings = cells["settings"].model_copy(update=changes)
    learner = cells["compile_learner"](settings)
    label = np.eye(10, dtype="float32")[:1]
    logits = np.log(label * (1 - smoothing) + smoothing / 10 + 1e-9)
    for model in (learner, learner.network):
        loss = model.compute_loss(y=label, y_pred=keras.ops.convert_to_tensor(logits))
        assert float(loss) == pytest.approx(entropy, abs=1e-3)
