"""Trains and times two public submissions of the assignment, beside the notebook.

They are rebuilt from their descriptions: baronrogers5/eip4 (week2/CODE9), whose
plateau rule read the test loss and is replaced by a cosine, and abdksyed/EVA4 (S5,
iteration 5), whose course asked for fewer than 10,000 parameters within 15 epochs.
EVA4 has PyTorch's initial kernels and rotation to the nearest pixel, as there. The
schedule of a shorter training is as much shorter.

Times are measured one process at a time: an epoch of theirs, without start-up and
evaluation, by the number of threads and of steps an execution; and whole trainings of
ours, with both, and what deskewing takes before them. A line that is stored names the
code that made it, and is not made again.
"""

import argparse
import functools
import json
import multiprocessing
import os
import platform
import re
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "1"}
import benchmark
import keras
import numpy as np
import tensorflow as tf
from keras import layers
from notebook import (
    DATA,
    REPOSITORY,
    bare,
    fingerprint,
    hash_of,
    run_cell,
    run_cells,
)

STORE = REPOSITORY / "tests" / "records" / "peers.jsonl"
convolution = functools.partial(layers.Conv2D, use_bias=False)


def eip4(epochs):
    """Return layers and optimizer of baronrogers5's network."""
    net = [convolution(10, 3), layers.ReLU()]
    for filters in (16, 16, None, 16, 16, 32):
        if filters:
            net += [convolution(filters, 3), layers.ReLU()]
            net += [layers.BatchNormalization(), layers.Dropout(0.1)]
        else:
            net += [convolution(10, 1), layers.ReLU(), layers.MaxPooling2D()]
    net += [convolution(10, 1), layers.ReLU(), layers.GlobalAveragePooling2D()]
    decay = keras.optimizers.schedules.CosineDecay(0.01, epochs * (60_000 // 128))
    return net, keras.optimizers.Adam(decay)


def pytorch_convolution(filters, size, padding="valid"):
    """Return a convolution whose kernels begin as PyTorch's do."""
    initial = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
    return convolution(filters, size, padding=padding, kernel_initializer=initial)


def pytorch_rotation():
    """Return abdksyed's rotation by up to 12 degrees, to the nearest pixel."""
    return layers.RandomRotation(12 / 360, "constant", "nearest", fill_value=1 / 255)


def eva4(epochs):
    """Return layers and optimizer of abdksyed's network."""
    net = [layers.Normalization(mean=0.1311, variance=0.3081**2)]
    for filters in (8, 8, None, 12, 12, 12, 16, 16):
        if filters:
            padding = "same" if filters == 8 else "valid"
            net += [pytorch_convolution(filters, 3, padding), layers.ReLU()]
            net += [layers.BatchNormalization(momentum=0.9, epsilon=1e-5)]
        else:
            net += [layers.MaxPooling2D()]
    net += [layers.GlobalAveragePooling2D(keepdims=True), pytorch_convolution(10, 1)]
    drops = [round(epochs * after / 15) * (60_000 // 64) for after in (7, 14)]
    decay = keras.optimizers.schedules.PiecewiseConstantDecay(drops, [1e-2, 1e-3, 1e-4])
    return [*net, layers.Flatten()], keras.optimizers.SGD(decay, momentum=0.9)


# How they are built, the size of a batch, and what changes the images.
PEERS = {
    "baronrogers5/eip4": (eip4, 128, None),
    "abdksyed/EVA4": (eva4, 64, pytorch_rotation),
}


def compiled(name, epochs, steps=20):
    """Return a peer's model, compiled for a training of so many epochs."""
    net, optimizer = PEERS[name][0](epochs)
    model = keras.Sequential([keras.Input((28, 28, 1)), *net])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], steps_per_execution=steps)
    return model


def train(name, epochs, seed, steps=20, timed=None):
    """Train a peer; return its seconds of each epoch and its test accuracy.

    If timed is a number, only so many epochs of the training are made.
    """
    _, size, augmentation = PEERS[name]
    keras.utils.set_random_seed(seed)
    with np.load(DATA) as arrays:
        images, labels = arrays["x_train"][..., None], arrays["y_train"]
        test = arrays["x_test"][..., None] / np.float32(255), arrays["y_test"]
    data = tf.data.Dataset.from_tensor_slices((images / np.float32(255), labels))
    data = data.shuffle(len(images)).batch(size, drop_remainder=True)
    if augmentation:
        change = augmentation()
        data = data.map(lambda x, y: (change(x, training=True), y), os.cpu_count())
    # Autotuning would end some epochs only when its thread wakes, after 20.5 seconds.
    options = tf.data.Options()
    options.autotune.enabled = False
    data = data.prefetch(20).with_options(options)
    model, seconds = compiled(name, epochs, steps), []
    for _ in range(timed or epochs):
        start = time.perf_counter()
        model.fit(data, shuffle=False, verbose=0)
        seconds.append(time.perf_counter() - start)
    return seconds, model.evaluate(*test, batch_size=1_000, verbose=0)[1]


def time_ours(name, seed):
    """Return the seconds of a whole training of ours."""
    epochs, overrides, _ = benchmark.LENGTHS[name]
    return benchmark.Run(name, seed, epochs, overrides).train()["training_seconds"]


def time_deskewing():
    """Return the seconds in which the notebook deskews all images."""
    given = {"overrides": benchmark.DESKEWED, "data_path": str(DATA)}
    cells = run_cells("split", **given)
    start = time.perf_counter()
    run_cell("deskew", cells)
    return time.perf_counter() - start


def machine():
    """Return the name of the machine and the versions."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    name = f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores"
    return f"{name}, Keras {keras.__version__}, TensorFlow {tf.__version__}"


def in_process(jobs):
    """Return a pool of processes, each new."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, context, max_tasks_per_child=1)


# What is wanted: the code above decides what comes out.
# Threads an operation (0: TensorFlow's choice) and steps an execution.
CHOICES = ((2, 20), (1, 20), (0, 1))  # the slowest is last
ROUNDS = range(3)  # of timing
LENGTHS = (4, 6, 8, 10, 15)
SEEDS = range(3)


def times(rounds):
    """Return the lines of the times that are wanted, without their results.

    The first round tries all choices and lengths; the others repeat, at other hours,
    what is compared.
    """
    lines = []
    for number in rounds:
        lines += [
            {"what": "epoch", "name": name, "round": number}
            | {"threads": t, "steps": s}
            for name in PEERS
            for t, s in (CHOICES[:2] if number else CHOICES)
        ]
        lines.append({"what": "deskewed", "name": "deskewing", "round": number})
        for name, (epochs, _, _) in benchmark.LENGTHS.items():
            count = 3 if epochs <= 3 else 1
            if number == 0 or epochs in (1, 20):
                lines += [
                    {"what": "whole", "name": name, "round": number, "seed": seed}
                    for seed in range(count * number, count * (number + 1))
                ]
    return lines


def trainings():
    """Return the lines of the trainings that are wanted, without their results."""
    return [
        {"what": "trained", "name": name, "epochs": epochs, "seed": seed}
        for name in PEERS
        for epochs in LENGTHS
        for seed in SEEDS
    ]


def coded(lines):
    """Return the lines with a hash of the code that each is of."""
    text = Path(__file__).read_text("utf-8").split("\n# What is wanted:")[0]
    theirs, ours = hash_of(bare(text)), fingerprint()
    is_ours = ("whole", "deskewed")
    return [x | {"code": ours if x["what"] in is_ours else theirs} for x in lines]


def result(line):
    """Return the line with its result; the process must be new, for its threads."""
    os.environ["TF_NUM_INTRAOP_THREADS"] = str(line.get("threads", 1))
    if line["what"] == "whole":
        return line | {"seconds": time_ours(line["name"], line["seed"])}
    if line["what"] == "deskewed":
        return line | {"seconds": time_deskewing()}
    if line["what"] == "epoch":  # the first one compiles
        seconds, _ = train(line["name"], 10, 0, line["steps"], timed=4)
        return line | {"seconds": seconds[1:]}
    return line | {"accuracy": train(line["name"], line["epochs"], line["seed"])[1]}


def read_lines():
    """Return the stored lines."""
    text = STORE.read_text("utf-8") if STORE.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def find(line, stored):
    """Return the stored line that has the result of this one, or None."""
    return next((other for other in stored if line.items() <= other.items()), None)


def whole_lines():
    """Return the stored lines that are wanted; raise LookupError if one is missing."""
    stored = read_lines()
    wanted = coded(times(ROUNDS) + trainings())
    found = [find(line, stored) for line in wanted]
    if missing := found.count(None):
        raise LookupError(f"{missing} lines are missing: run tests/tools/peers.py.")
    return found


def make(lines, jobs):
    """Make the lines that are not stored yet, each in a new process, and store them."""
    stored = read_lines()
    with in_process(jobs) as pool:
        missing = [line for line in coded(lines) if not find(line, stored)]
        for future in as_completed(pool.submit(result, line) for line in missing):
            line = future.result() | {"machine": machine()}
            with STORE.open("a", encoding="utf-8") as store:
                store.write(json.dumps(line | {"ended": time.strftime("%F %H:%M")}))
                store.write("\n")


def main():
    """Measure and train whatever is not stored yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    jobs = parser.parse_args().jobs
    make(times(ROUNDS[:1]), 1)
    make(trainings(), jobs)
    make(times(ROUNDS[1:]), 1)


if __name__ == "__main__":
    main()
