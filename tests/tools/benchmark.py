"""Trains what README and tests/README speak of, and stores a record of each run.

A run that is stored already, by the same code and settings, is not made again: an
interrupted benchmark goes on where it was. report.py turns the records into tables and
figures. Each run is one process with the notebook's own cells.
"""

import argparse
import functools
import json
import multiprocessing
import os
import platform
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field

import numpy as np
from notebook import DATA, REPOSITORY, fingerprint, run_cells, settings_of
from scipy import optimize, special
from tqdm import tqdm

STORE = REPOSITORY / "tests" / "records" / "benchmark.jsonl"
SEEDS = range(60)  # earlier editions were tested with seeds 0 to 9, too
FRESH_SEEDS = range(30, 35)
# Seed and fold of the ablation's pairs; a fold is which 10,000 training images are held
# out: the last, or the 10,000 before them.
PAIRS = ((0, 0), (0, 1), (1, 0), (2, 1), (3, 0), (4, 1))
HOLDOUT = 10_000
TO_ADAM = {
    "return Muon(": "return keras.optimizers.Adam(",
    "        momentum=0.9,\n": "",
    "        rms_rate=None,  # no other factor than the learning rate\n": "",
    "        adam_lr_ratio=0.2,\n": "",
    "adam_beta_1=": "beta_1=",
    "adam_beta_2=": "beta_2=",
    "        adam_weight_decay=None,\n": "",
}
RELU = {'layers.Activation("silu")': 'layers.Activation("relu")'}
NO_SHIFT = {"self.draw(1.0, count, 2, 1)": "self.draw(0.0, count, 2, 1)"}
STRENGTH = {"ops.clip((1 - self.step / self.steps) / 0.3, 0.2, 1.0)": "1.0"}
# One change each: the settings that are replaced, and the texts of the notebook's code
# that are.
ABLATION = {
    "as it is": ({}, {}),
    "Adam instead of Muon": ({"learning_rate": 0.02}, TO_ADAM),
    "augmentation at constant strength": ({}, STRENGTH),
    "no augmentation": ({"rotation": 0.0, "stretch": 0.0}, NO_SHIFT),
    "no label smoothing": ({"label_smoothing": 0.0}, {}),
    "ReLU instead of SiLU": ({}, RELU),
}
DESKEWED = {"deskew": True}
ONE = {"batch_size": 64} | DESKEWED  # with one epoch
FEW = {"label_smoothing": 0.0} | DESKEWED  # with few parameters
# What was tried for one epoch, and for few parameters; the first is what is used.
ONE_EPOCH = {
    "1 epoch": (ONE, {}),
    "1 epoch, not deskewed": (ONE | {"deskew": False}, {}),
    "1 epoch, batches of 32": (ONE | {"batch_size": 32}, {}),
    "1 epoch, batches of 128": (ONE | {"batch_size": 128}, {}),
    "1 epoch, half the augmentation": (ONE | {"rotation": 5.0, "stretch": 0.05}, {}),
    "1 epoch, Adam at 0.02": (ONE | {"learning_rate": 0.02}, TO_ADAM),
}
SMALL = {"filters": [8, 16, 16, 17, 17]} | FEW
SMALL_NETWORK = {
    "1,976 parameters": (SMALL, {}),
    "1,976 parameters, not deskewed": (SMALL | {"deskew": False}, {}),
    "1,976 parameters, smoothing 0.1": (SMALL | {"label_smoothing": 0.1}, {}),
}
# Comparisons on hold-outs: epochs, pairs, and the changes, of which the first is none.
COMPARED = (
    (20, PAIRS, ABLATION),
    (1, PAIRS, ONE_EPOCH),
    (20, PAIRS[:3], SMALL_NETWORK),
)
# What is tested on the test images: epochs, settings, and how many of the seeds.
LENGTHS = {
    "1 epoch": (1, ONE, 60),
    "2 epochs": (2, DESKEWED, 10),
    "3 epochs": (3, DESKEWED, 5),
    "5 epochs": (5, DESKEWED, 5),
    "10 epochs": (10, {}, 5),
    "20 epochs": (20, {}, 10),
}
WIDTHS = {  # by their numbers of parameters
    "980": (20, {"filters": [5, 10, 10, 10, 10]} | FEW, 5),
    "1,460": (20, {"filters": [7, 13, 13, 13, 14]} | FEW, 5),
    "1,976": (20, SMALL, 10),
    "2,820": (20, {"filters": [6, 12, 21, 27, 27]} | FEW, 30),
    "3,522": (20, {"filters": [7, 14, 24, 31, 31]} | FEW, 10),
    "4,480": (20, {"filters": [8, 16, 28, 36, 36]} | DESKEWED, 10),
    "8,880": (20, {"filters": [12, 24, 42, 54, 54]} | DESKEWED, 5),
}
TESTED = LENGTHS | WIDTHS
FRESH = ("2 epochs", "20 epochs", "3,522", "4,480")  # with later seeds, too


@dataclass(frozen=True)
class Run:
    """One training that is wanted: its parameters, and its edits of the notebook."""

    name: str
    seed: int
    epochs: int = 20
    overrides: dict = field(default_factory=dict)
    fold: int | None = None  # None: trained on all, evaluated on the test images
    edits: dict = field(default_factory=dict)

    def all_edits(self):
        """Return the edits, with the one that holds other images out."""
        if not self.fold:
            return self.edits
        read = 'load(settings.data_path, "train")'
        rolled = f"np.roll(array, {self.fold * HOLDOUT}, axis=0) for array in {read}"
        return self.edits | {f"images, labels = {read}": f"images, labels = ({rolled})"}

    def parameters(self):
        """Return the parameters of the notebook that say what images are used."""
        holdout = 0 if self.fold is None else HOLDOUT
        return {"data_path": str(DATA), "holdout": holdout}

    def key(self):
        """Return what determines the record of the run, as JSON has it."""
        return {
            "name": self.name,
            "fold": self.fold,
            "fingerprint": fingerprint(tuple(self.all_edits().items())),
            "settings": settings_of(self.seed, self.epochs, self.overrides),
            "sha256": digest_of(self.fold, **self.parameters()),
        }

    def train(self):
        """Train by the notebook's cells and return the record to store."""
        given = {"seed": self.seed, "epochs": self.epochs, "overrides": self.overrides}
        given |= self.parameters()
        cells = run_cells("train", edits=self.all_edits(), **given)
        record = cells["record"] | self.key()
        record["log"] = record.pop("history")["val_accuracy"]
        loss = cross_entropy(cells["logits"], cells["evaluation_labels"])
        return record | {"cross_entropy": loss}


def cross_entropy(logits, labels):
    """Return the mean cross-entropy of logits (n, 10) at the best temperature.

    Logits are divided by the one number that gives the least mean for these labels
    (n,), so that nets of different confidence compare (https://arxiv.org/abs/1706.04599).
    """
    logits = logits.astype("float64")

    def at(log_scale):
        scaled = np.exp(log_scale) * logits
        right = np.take_along_axis(scaled, labels[:, None].astype(int), axis=1)
        return (special.logsumexp(scaled, axis=1, keepdims=True) - right).mean()

    return float(optimize.minimize_scalar(at, bounds=(-3, 3), method="bounded").fun)


@functools.cache
def digest_of(fold, **parameters):
    """Return the hash of the images and labels that a run of this fold uses."""
    edits = Run("", 0, fold=fold).all_edits()
    return run_cells("split", edits=edits, **parameters)["data"]["sha256"]


def all_runs():
    """Return every run that the pages speak of, the most important first."""
    runs = [
        Run(name, seed, epochs, overrides)
        for name, (epochs, overrides, seeds) in TESTED.items()
        for seed in SEEDS[:seeds]
    ]
    runs += [
        Run(f"{name}, fresh", seed, *TESTED[name][:2])
        for name in FRESH
        for seed in FRESH_SEEDS
    ]
    runs += [
        Run(name, seed, epochs, overrides, fold, edits)
        for epochs, pairs, changes in COMPARED
        for name, (overrides, edits) in changes.items()
        for seed, fold in pairs
    ]
    return runs


def read_records():
    """Return the stored records, oldest first."""
    lines = STORE.read_text("utf-8").splitlines() if STORE.exists() else []
    return [json.loads(line) for line in lines]


def find(run, records):
    """Return the record of this run by the present code and settings, or None."""
    wanted = run.key().items()
    return next((record for record in records if wanted <= record.items()), None)


def whole_records():
    """Return the records of all runs, with the settings among the rest.

    Raises LookupError if one is not stored.
    """
    records = read_records()
    found = [find(run, records) for run in all_runs()]
    if missing := found.count(None):
        raise LookupError(f"{missing} runs are missing: run tests/tools/benchmark.py.")
    return [record["settings"] | record for record in found]


def main():
    """Make all the runs that are not stored yet, and store each as it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    jobs = parser.parse_args().jobs
    stored = read_records()
    missing = [run for run in all_runs() if find(run, stored) is None]
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "jobs": jobs}
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, context, max_tasks_per_child=1)
    waiting = [pool.submit(run.train) for run in missing]
    try:
        for done in tqdm(as_completed(waiting), total=len(waiting)):
            with STORE.open("a", encoding="utf-8") as store:
                store.write(json.dumps(done.result() | machine) + "\n")
    finally:  # what has not begun when this fails is left to the next time
        pool.shutdown(cancel_futures=True)


if __name__ == "__main__":
    main()
