"""Times the notebook's recipes and two public networks, on one machine in one run.

The two are submissions of this assignment, rebuilt from their published descriptions:
baronrogers5/eip4 (week2/CODE9), whose plateau rule read the test loss and is replaced
by a cosine, and abdksyed/EVA4 (S5). They get whatever makes them faster: first, short
trials find the best number of threads, then of steps an execution, then the type of
the images that are fed; then each is trained whole, its decay spanning its epochs. Of
theirs the median epoch counts, without start-up and validation; of ours the whole
training, with both.
"""

import functools
import json
import multiprocessing
import os
import platform
import re
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
import tensorflow as tf
from benchmark import LONGER
from keras import layers
from notebook import DATA, REPOSITORY, fingerprint, run_notebook

STORE = REPOSITORY / "tests" / "records" / "speed.json"
OURS = {"quick": ("quick", {})} | LONGER | {"assignment": ("assignment", {})}
REPEATS = 2  # trainings of each
# Threads an operation (0: TensorFlow's choice), steps an execution, type of the images.
CHOICES = ((0, 1, 2), (1, 20), ("float32", "uint8"))
convolution = functools.partial(layers.Conv2D, use_bias=False)


def eip4(steps):
    """Return the net's layers, its optimizer and augmentation."""
    net = [convolution(10, 3), layers.ReLU()]
    for filters in (16, 16, None, 16, 16, 32):
        if filters is None:
            net += [convolution(10, 1), layers.ReLU(), layers.MaxPooling2D()]
        else:
            net += [convolution(filters, 3), layers.ReLU()]
            net += [layers.BatchNormalization(), layers.Dropout(0.1)]
    net += [convolution(10, 1), layers.ReLU(), layers.GlobalAveragePooling2D()]
    decay = keras.optimizers.schedules.CosineDecay(0.01, steps)
    return net, keras.optimizers.Adam(decay), None


def eva4(steps):
    """Return the net's layers, its optimizer and augmentation."""
    net = []
    for filters in (8, 8, None, 12, 12, 12, 16, 16):
        if filters is None:
            net += [layers.MaxPooling2D()]
        else:
            padding = "same" if filters == 8 else "valid"
            net += [convolution(filters, 3, padding=padding)]
            net += [layers.BatchNormalization(), layers.ReLU()]
    net += [layers.GlobalAveragePooling2D(keepdims=True), convolution(10, 1)]
    at, rates = [round(steps * 7 / 15)], [0.01, 0.001]
    decay = keras.optimizers.schedules.PiecewiseConstantDecay(at, rates)
    rotation = layers.RandomRotation(12 / 360, fill_mode="constant")
    return [*net, layers.Flatten()], keras.optimizers.SGD(decay, 0.9), rotation


# How they are built, their batches and their epochs.
PEERS = {"baronrogers5/eip4": (eip4, 128, 10), "abdksyed/EVA4": (eva4, 64, 15)}


def train_peer(name, settings, seed, epochs):
    """Train a peer; return its median epoch in seconds and its test accuracy."""
    (build, size, _), (_, steps, dtype) = PEERS[name], settings
    keras.utils.set_random_seed(seed)
    with np.load(DATA) as arrays:
        images, labels = arrays["x_train"][..., None], arrays["y_train"]
        test = arrays["x_test"][..., None] / np.float32(255), arrays["y_test"]
    net, optimizer, augmentation = build(epochs * (len(images) // size))
    if dtype == "float32":
        images = images.astype("float32") / 255
    data = tf.data.Dataset.from_tensor_slices((images, labels))
    data = data.shuffle(len(images)).batch(size, drop_remainder=True)
    if dtype == "uint8":
        data = data.map(lambda x, y: (tf.cast(x, "float32") / 255, y))
    if augmentation:
        augment = lambda x, y: (augmentation(x, training=True), y)  # noqa: E731
        data = data.map(augment, tf.data.AUTOTUNE)
    model = keras.Sequential([keras.Input((28, 28, 1)), *net])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    steps = min(steps, len(images) // size)
    model.compile(optimizer, loss, metrics=["accuracy"], steps_per_execution=steps)
    seconds = []
    for _ in range(epochs):
        start = time.perf_counter()
        model.fit(data.prefetch(tf.data.AUTOTUNE), verbose=0)
        seconds.append(time.perf_counter() - start)
    accuracy = model.evaluate(*test, batch_size=1_000, verbose=0)[1]
    return statistics.median(seconds[1:] or seconds), accuracy  # the first one compiles


def alone(name, settings, seed, epochs):
    """Train a peer in a process of its own, which alone can set its threads."""
    os.environ["TF_NUM_INTRAOP_THREADS"] = str(settings[0])
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as process:
        return process.submit(train_peer, name, settings, seed, epochs).result()


def time_peer(name):
    """Return how long a peer takes with the settings that are the fastest for it."""
    trials, best, epochs = {}, tuple(values[0] for values in CHOICES), PEERS[name][2]
    for place, values in enumerate(CHOICES):
        for settings in [(*best[:place], v, *best[place + 1 :]) for v in values]:
            if settings not in trials:
                trials[settings] = alone(name, settings, 0, 2)[0]
        best = min(trials, key=trials.get)
    runs = [alone(name, best, seed, epochs) for seed in range(REPEATS)]
    seconds, accuracies = zip(*runs, strict=True)
    threads, steps, dtype = best
    shown = {0: "TensorFlow's threads", 1: "1 thread"}.get(
        threads, f"{threads} threads"
    )
    return {
        "epochs": epochs,
        "seconds": epochs * statistics.median(seconds),
        "accuracies": accuracies,
        "settings": f"{shown} an operation, {steps} steps an execution, {dtype} images",
        "trials": [[*settings, seconds] for settings, seconds in trials.items()],
    }


def time_recipe(recipe, overrides):
    """Return how long whole trainings of a recipe take, by the median."""
    given = {"recipe": recipe, "overrides": overrides, "data_path": str(DATA)}
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            run_notebook(Path(folder) / "run.ipynb", given | {"seed": seed})
            for seed in range(REPEATS)
        ]
    seconds = statistics.median(run["training_seconds"] for run in runs)
    epochs = runs[0]["settings"]["epochs"]
    return {"epochs": epochs, "seconds": seconds, "settings": "as in the notebook"}


def machine():
    """Return the name of the machine and the versions."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    name = f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores"
    return f"{name}, Keras {keras.__version__}, TensorFlow {tf.__version__}"


def main():
    """Time all of them and store the record."""
    record = {"machine": machine(), "load": os.getloadavg()[0], "repeats": REPEATS}
    record |= {"fingerprint": fingerprint()}
    timed = {name: time_recipe(*ours) for name, ours in OURS.items()}
    timed |= {name: time_peer(name) for name in PEERS}
    text = json.dumps(record | {"timed": timed}, indent=1)
    STORE.write_text(f"{text}\n", "utf-8")
    print(text)


if __name__ == "__main__":
    main()
