"""Trains what README and tests/README speak of, and stores a record of each run.

A run that is stored already, by the same code and settings, is not made again: an
interrupted benchmark goes on where it was. report.py turns the records into tables and
figures. Each run is one process with the notebook's own cells; a training fills two
cores, so more jobs than half the cores gain little.
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
SEEDS = tuple(range(10))  # earlier editions were tested with these seeds, too
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
STRENGTH = {"ops.clip((1 - self.step / self.steps) / 0.3, 0.2, 1.0)": "1.0"}
# One change each: the settings that are replaced, and the texts of the notebook's code
# that are.
ABLATION = {
    "as it is": ({}, {}),
    "Adam instead of Muon": ({"learning_rate": 0.02}, TO_ADAM),
    "augmentation at constant strength": ({}, STRENGTH),
}
ONE = {"batch_size": 32}  # with one epoch
# What was tried for one epoch.
TRIALS = {
    f"1 epoch, batches of {size}": ({"batch_size": size}, {}) for size in (32, 64, 128)
} | {
    f"1 epoch, Adam at {rate}": (ONE | {"learning_rate": rate}, TO_ADAM)
    for rate in (0.01, 0.02)
}
TESTED = {"20 epochs": (20, {}), "1 epoch": (1, ONE), "2 epochs": (2, {})}


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
        for name, (epochs, overrides) in TESTED.items()
        for seed in SEEDS
    ]
    runs += [
        Run(name, seed, epochs, overrides, fold, edits)
        for epochs, changes in ((20, ABLATION), (1, TRIALS))
        for seed, fold in PAIRS
        for name, (overrides, edits) in changes.items()
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
