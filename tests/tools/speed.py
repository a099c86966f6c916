"""Times the notebook's recipes beside two public nets, on one machine in one run.

The two are public submissions of this assignment, rebuilt from their published
descriptions: baronrogers5/eip4 (week2/CODE9.ipynb) and abdksyed/EVA4 (S5). An epoch is
timed several times and the fastest counts; a training is as many epochs as theirs took
to end at 99.4 %. Ours are whole trainings, their validation after each epoch included.
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
from runner import DATA, REPOSITORY, fingerprint, run_notebook, write_whole

STORE = REPOSITORY / "tests" / "records" / "speed.json"


def convolution(filters, kernel=3, padding="valid"):
    """Return a convolution without bias."""
    return layers.Conv2D(filters, kernel, padding=padding, use_bias=False)


def eip4():
    """Return the net's layers, its optimizer, batch size and augmentation."""
    net = [convolution(10), layers.ReLU()]
    for filters in (16, 16, None, 16, 16, 32):
        if filters is None:
            net += [convolution(10, 1), layers.ReLU(), layers.MaxPooling2D()]
        else:
            net += [convolution(filters), layers.ReLU()]
            net += [layers.BatchNormalization(), layers.Dropout(0.1)]
    net += [convolution(10, 1), layers.ReLU(), layers.GlobalAveragePooling2D()]
    return net, keras.optimizers.Adam(0.01), 128, None


def eva4():
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
    return [*net, layers.Flatten()], keras.optimizers.SGD(0.01, 0.9), 64, rotation


# The epochs after which each of them, its decay as long as that, ends at 99.4 %.
PEERS = {"eip4": (eip4, 10), "eva4": (eva4, 15)}


def epoch_seconds(build, repeats):
    """Return the seconds of a peer's fastest epoch, its first one left out."""
    net, optimizer, batch_size, augmentation = build()
    with np.load(DATA) as archive:
        images, labels = archive["x_train"][..., None] / 255, archive["y_train"]
    data = tf.data.Dataset.from_tensor_slices((images.astype("float32"), labels))
    data = data.shuffle(60_000).batch(batch_size, drop_remainder=True)
    if augmentation is not None:
        data = data.map(
            lambda x, y: (augmentation(x, training=True), y), tf.data.AUTOTUNE
        )
    model = keras.Sequential([keras.Input((28, 28, 1)), *net])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        model.fit(data.prefetch(tf.data.AUTOTUNE), verbose=0)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


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
    parser.add_argument("--repeats", type=int, default=3, help="the fastest counts")
    repeats = parser.parse_args().repeats
    ours = {"quick": training_seconds("quick", repeats)}
    ours["assignment"] = training_seconds("assignment", 1)
    peers = {
        name: {"epoch": epoch_seconds(build, repeats), "epochs": epochs}
        for name, (build, epochs) in PEERS.items()
    }
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Keras {keras.__version__}"
    record = {"machine": machine, "repeats": repeats, "fingerprint": fingerprint()}
    record |= {"ours": ours, "peers": peers}
    write_whole(STORE, (json.dumps(record, indent=1) + "\n").encode())
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
