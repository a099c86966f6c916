"""Times the notebook's recipes beside two public nets, on one machine in one run.

The two are public submissions of this assignment, rebuilt from their published
descriptions: baronrogers5/eip4 (week2/CODE9.ipynb), whose plateau rule read the test
loss, so that a cosine decay stands in for it, and abdksyed/EVA4 (S5). Each is trained
whole from several seeds, for so many epochs that it ends at 99.4 % on average, its
decay shortened to fit; the fastest epoch counts. Ours are whole trainings, with their
validation after each epoch.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
import tensorflow as tf
from keras import layers
from notebook import DATA, REPOSITORY, fingerprint, run_notebook, write_whole

STORE = REPOSITORY / "tests" / "records" / "speed.json"


def convolution(filters, kernel=3, padding="valid"):
    """Return a convolution without bias."""
    return layers.Conv2D(filters, kernel, padding=padding, use_bias=False)


def eip4(epochs):
    """Return the net's layers, its optimizer, batch size and augmentation."""
    net = [convolution(10), layers.ReLU()]
    for filters in (16, 16, None, 16, 16, 32):
        if filters is None:
            net += [convolution(10, 1), layers.ReLU(), layers.MaxPooling2D()]
        else:
            net += [convolution(filters), layers.ReLU()]
            net += [layers.BatchNormalization(), layers.Dropout(0.1)]
    net += [convolution(10, 1), layers.ReLU(), layers.GlobalAveragePooling2D()]
    decay = keras.optimizers.schedules.CosineDecay(0.01, epochs * 468)
    return net, keras.optimizers.Adam(decay), 128, None


def eva4(epochs):
    """Return the net's layers, its optimizer, batch size and augmentation."""
    net = []
    for filters in (8, 8, None, 12, 12, 12, 16, 16):
        if filters is None:
            net += [layers.MaxPooling2D()]
        else:
            padding = "same" if filters == 8 else "valid"
            net += [convolution(filters, padding=padding)]
            net += [layers.BatchNormalization(), layers.ReLU()]
    net += [layers.GlobalAveragePooling2D(keepdims=True), convolution(10, 1)]
    rotation = layers.RandomRotation(12 / 360, fill_mode="constant")
    step = round(epochs * 7 / 15) * 937
    decay = keras.optimizers.schedules.PiecewiseConstantDecay([step], [0.01, 0.001])
    return [*net, layers.Flatten()], keras.optimizers.SGD(decay, 0.9), 64, rotation


# Epochs that suffice to end at 99.4 %.
PEERS = {"baronrogers5/eip4": (eip4, 10), "abdksyed/EVA4": (eva4, 15)}


def train_peer(build, epochs, seed):
    """Train a peer; return its fastest epoch in seconds and its test accuracy."""
    keras.utils.set_random_seed(seed)
    net, optimizer, batch_size, augmentation = build(epochs)
    with np.load(DATA) as archive:
        arrays = dict(archive)
    images, test_images = (
        arrays[key][..., None].astype("float32") / 255 for key in ("x_train", "x_test")
    )
    data = tf.data.Dataset.from_tensor_slices((images, arrays["y_train"]))
    data = data.shuffle(60_000).batch(batch_size, drop_remainder=True)
    if augmentation is not None:
        data = data.map(
            lambda x, y: (augmentation(x, training=True), y), tf.data.AUTOTUNE
        )
    model = keras.Sequential([keras.Input((28, 28, 1)), *net])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    seconds = []
    for _ in range(epochs):
        start = time.perf_counter()
        model.fit(data.prefetch(tf.data.AUTOTUNE), verbose=0)
        seconds.append(time.perf_counter() - start)
    accuracy = model.evaluate(test_images, arrays["y_test"], verbose=0)[1]
    return min(seconds), accuracy


def time_peer(build, epochs, repeats):
    """Return the fastest epoch of a peer's trainings, and their accuracies."""
    runs = [train_peer(build, epochs, seed) for seed in range(repeats)]
    seconds, accuracies = zip(*runs, strict=True)
    return {"epochs": epochs, "epoch": min(seconds), "accuracies": accuracies}


def training_seconds(recipe, repeats):
    """Return the seconds of the fastest training of a recipe."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            run_notebook(Path(folder) / "run.ipynb", {"recipe": recipe})
            for _ in range(repeats)
        ]
    return min(run["training_seconds"] for run in runs)


def main():
    """Time all of them and store the seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--repeats", type=int, default=3, help="trainings, but one of assignment"
    )
    repeats = parser.parse_args().repeats
    ours = {"quick": training_seconds("quick", repeats)}
    ours["assignment"] = training_seconds("assignment", 1)
    peers = {name: time_peer(*peer, repeats) for name, peer in PEERS.items()}
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Keras {keras.__version__}"
    record = {"machine": machine, "repeats": repeats, "fingerprint": fingerprint()}
    record |= {"ours": ours, "peers": peers}
    write_whole(STORE, (json.dumps(record, indent=1) + "\n").encode())
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
