"""The assignment's rules, on the net of every recipe, and the check of them."""

import math

import numpy as np
import pytest
from keras import Input, Model, layers
from runner import run_cells


@pytest.fixture(scope="module")
def cells():
    """The notebook's namespace once the rules have been checked."""
    return run_cells("rules")


@pytest.fixture(scope="module")
def recipes(cells):
    """Every recipe and the net it builds."""
    kept = {name: cells["Recipe"](**r) for name, r in cells["RECIPES"].items()}
    return {name: (r, cells["build_model"](r)) for name, r in kept.items()}


def test_every_recipe_keeps_the_rules(cells, recipes):
    for recipe, network in recipes.values():
        cells["check_rules"](network, recipe.epochs)


def test_parameters_are_counted_whole(recipes):
    for recipe, network in recipes.values():
        total = sum(math.prod(variable.shape) for variable in network.weights)
        assert network.count_params() == total < 15_000
        assert recipe.epochs <= 20


def test_nothing_is_trained_but_kernels(recipes):
    for _, network in recipes.values():
        for layer in network.layers:
            assert not getattr(layer, "use_bias", False)
            assert not getattr(layer, "center", False)
        names = {variable.name for variable in network.trainable_variables}
        assert names <= {"kernel", "depthwise_kernel", "pointwise_kernel"}


def test_without_an_input_there_is_no_evidence(recipes):
    """A net without additive parameters, its means at zero, maps black to nothing."""
    for _, network in recipes.values():
        logits = network.predict(np.zeros((1, 28, 28, 1), "float32"), verbose=0)
        assert np.abs(logits).max() < 1e-6


def broken_network(kind):
    """Return a small net that breaks the rule named kind."""
    image = x = Input((28, 28, 1))
    x = layers.Conv2D(64 if kind == "size" else 8, 5, use_bias=kind == "bias")(x)
    x = layers.BatchNormalization(center=kind == "offset", scale=False)(x)
    if kind == "size":
        x = layers.Conv2D(24, 3, use_bias=False)(x)
    if kind == "flatten":
        x = layers.Conv2D(10, 24, use_bias=False)(x)
        return Model(image, layers.Flatten()(x))
    x = layers.GlobalAveragePooling2D()(x)
    if kind == "nested":
        inner = Input((8,))
        dense = Model(inner, layers.Dense(10, use_bias=False)(inner))
        return Model(image, dense(x))
    return Model(image, layers.Dense(10, use_bias=False)(x) if kind == "dense" else x)


@pytest.mark.parametrize(
    ("kind", "epochs", "message"),
    [
        ("bias", 20, "use_bias=False"),
        ("offset", 20, "center=False"),
        ("dense", 20, "no Dense layer"),
        ("nested", 20, "no Dense layer"),
        ("flatten", 20, "end on GlobalAveragePooling2D"),
        ("size", 20, "stay below 15,000"),
        ("none", 21, "from 1 to 20"),
        ("none", 0, "from 1 to 20"),
    ],
)
def test_the_check_stops_a_broken_rule(cells, kind, epochs, message):
    with pytest.raises(ValueError, match=message):
        cells["check_rules"](broken_network(kind), epochs)


def test_the_check_lets_a_good_net_pass(cells):
    cells["check_rules"](broken_network("none"), 20)


def test_exactly_15000_parameters_are_too_many(cells):
    image = Input((28, 28, 1))
    x = layers.Conv2D(600, 5, use_bias=False)(image)
    network = Model(image, layers.GlobalAveragePooling2D()(x))
    assert network.count_params() == 15_000
    with pytest.raises(ValueError, match="stay below"):
        cells["check_rules"](network, 20)


def test_the_net_is_checked_before_it_is_trained():
    with pytest.raises(ValueError, match="stay below 15,000"):
        run_cells("rules", overrides={"filters": [16, 48, 64, 200]})
