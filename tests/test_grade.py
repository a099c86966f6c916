"""The grader, on notebooks made here, good and bad, old and new, and on this one."""

import json
import subprocess
import sys

import pytest
from grade import grade
from notebook import NOTEBOOK, REPOSITORY

GOOD = """
keras.utils.set_random_seed(0)
x = layers.Conv2D(16, 3, use_bias=False)(x)
x = layers.BatchNormalization(center=False)(x)
model.fit(x, y, epochs=3)
print(model.evaluate(x_test, y_test))
"""
LOG = """Total params: 14,960
Epoch 1/3
- loss: 0.2 - acc: 0.93 - val_loss: 0.05 - val_acc: 0.9830
Epoch 2/3
- loss: 0.1 - acc: 0.98 - val_loss: 0.03 - val_acc: 0.9915
Epoch 3/3
- loss: 0.1 - acc: 0.99 - val_loss: 0.02 - val_acc: 0.9943
[0.02, 0.9943]
"""


@pytest.fixture
def verdicts(tmp_path):
    """A function that grades a notebook of one cell: rules by name to verdicts."""

    def graded(source=GOOD, printed=LOG, **output):
        stream = {"output_type": "stream", "name": "stdout", "text": printed} | output
        cell = {"cell_type": "code", "source": source, "outputs": [stream]}
        path = tmp_path / "notebook.ipynb"
        path.write_text(json.dumps({"cells": [cell], "nbformat": 4}))
        return {finding.rule: finding.verdict for finding in grade(path)}

    return graded


def test_a_good_notebook_passes_everything(verdicts):
    assert set(verdicts().values()) == {"pass"}


@pytest.mark.parametrize(
    ("rule", "old", "new"),
    [
        ("no dense layer", "model.fit", "layers.Dense(10)(x)\nmodel.fit"),
        ("no biases", "use_bias=False", "use_bias=True"),
        ("no biases", ", use_bias=False", ""),
        ("fewer than 15,000 parameters", "14,960", "15,000"),
        ("at most 20 epochs", "Epoch 3/3", "Epoch 21/21"),
        ("a log of every epoch", "Epoch 2/3\n", ""),
        ("a log of every epoch", "val_acc: 0.9915", ""),
        ("99.4 % on the test set", "[0.02, 0.9943]", "[0.02, 0.9939]"),
    ],
)
def test_a_broken_rule_fails(verdicts, rule, old, new):
    assert old in GOOD + LOG
    changed = verdicts(GOOD.replace(old, new), LOG.replace(old, new))
    assert changed[rule] == "fail"


@pytest.mark.parametrize(
    ("warning", "old", "new"),
    [
        ("no seed", "keras.utils.set_random_seed(0)", ""),
        ("no offset", "center=False", ""),
        ("a warm start", "0.9830", "0.9935"),
        ("not the last epoch", "[0.02, 0.9943]", "[0.02, 0.9950]"),
        ("the test set decides", "model.fit", "ModelCheckpoint('w')\nmodel.fit"),
        ("the test set decides", "model.fit", "EarlyStopping('val_acc')\nm.fit"),
    ],
)
def test_a_weak_claim_is_warned_of(verdicts, warning, old, new):
    assert old in GOOD + LOG
    changed = verdicts(GOOD.replace(old, new), LOG.replace(old, new))
    assert changed[warning] == "warning"


def test_who_steers_by_the_training_loss_is_not_warned_of(verdicts):
    for monitor in ("'loss'", "monitor='loss'"):
        source = GOOD.replace("model.fit", f"ReduceLROnPlateau({monitor})\nmodel.fit")
        assert "the test set decides" not in verdicts(source)


def test_the_best_epoch_claimed_is_warned_of(verdicts):
    log = LOG.replace("val_acc: 0.9915", "val_acc: 0.9950")
    changed = verdicts(GOOD, log.replace("[0.02, 0.9943]", "[0.02, 0.9950]"))
    assert changed["the best epoch claimed"] == "warning"


def test_what_cannot_be_told_is_unknown(verdicts):
    found = verdicts("x = 1", "")
    assert "pass" not in found.values()
    assert found["no dense layer"] == found["no biases"] == "unknown"
    assert found["fewer than 15,000 parameters"] == "unknown"


def test_a_commented_layer_is_not_called(verdicts):
    source = GOOD + "# layers.Dense(10)\n%matplotlib inline\n!pip install keras\n"
    assert verdicts(source)["no dense layer"] == "pass"


def test_source_that_does_not_parse_is_never_passed(verdicts):
    assert verdicts("model = ((\n" + GOOD)["no biases"] == "unknown"


@pytest.mark.parametrize(
    ("rule", "source", "log"),
    [
        ("no dense layer", "for i in a:\n    !ls\nx = layers.Dense(10)(x)\n", ""),
        ("no dense layer", "from keras.layers import Dense as D\nD(10)(x)\n", ""),
        ("no biases", "layers.Conv2DTranspose(8, 3)(x)\n", ""),
        ("no biases", "conv = layers.Conv2D\nconv(8, 3)(x)\n", ""),
        ("no biases", "f = l.Conv1D if a else l.SeparableConv2D\nf(8, 3)(x)\n", ""),
        ("at most 20 epochs", "model.fit(x, y, epochs=200, verbose=0)\n", ""),
        ("fewer than 15,000 parameters", "", "Total params: 3,600,000\n"),
    ],
)
def test_it_is_not_led_astray(verdicts, rule, source, log):
    assert verdicts(source + GOOD, log + LOG)[rule] == "fail"


@pytest.mark.parametrize(
    ("rule", "old", "new"),
    [
        ("99.4 % on the test set", "(x_test, y_test)", "(x_train, y_train)"),
        (
            "99.4 % on the test set",
            "print(model.evaluate(x_test, y_test))",
            "# .evaluate(",
        ),
        ("fewer than 15,000 parameters", "14,960", "0"),
    ],
)
def test_what_is_no_evidence_is_unknown(verdicts, rule, old, new):
    changed = verdicts(GOOD.replace(old, new), LOG.replace(old, new))
    assert changed[rule] == "unknown"


def test_the_optimizer_is_not_counted(verdicts):
    log = LOG + "Total params: 44,000\nOptimizer params: 29,040\n"
    assert verdicts(printed=log)["fewer than 15,000 parameters"] == "pass"


HOSTILE = {
    "empty": b"",
    "no JSON": b"{",
    "no object": b"[1]",
    "a number": b"3",
    "null cells": b'{"cells": null}',
    "cells of numbers": b'{"cells": [1, 2]}',
    "odd outputs": b'{"cells": [{"cell_type": "code", "outputs": [3]}]}',
    "odd data": b'{"cells": [{"cell_type": "code", "outputs": [{"data": 3}]}]}',
    "odd source": b'{"cells": [{"cell_type": "code", "source": 3}]}',
    "deep": b"[" * 100_000,
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_damaged_file_gets_an_error_not_a_traceback(kind, tmp_path):
    path = tmp_path / "bad.ipynb"
    path.write_bytes(HOSTILE[kind])
    command = [sys.executable, "tests/grade.py", str(path)]
    ended = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("Error: ")
    assert "Traceback" not in ended.stderr


def test_nothing_is_executed(verdicts, tmp_path):
    trace = tmp_path / "trace"
    verdicts(f"open({str(trace)!r}, 'w')\n" + GOOD)
    assert not trace.exists()


def test_this_notebook_passes_everything():
    assert {finding.verdict for finding in grade(NOTEBOOK)} == {"pass"}
