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

from notebook import DATA, REPOSITORY, definitions, fingerprint, run_cells, settings_of
from tqdm import tqdm

STORE = REPOSITORY / "tests" / "records" / "benchmark.jsonl"
SEEDS = tuple(range(10))  # earlier editions were tested with these seeds, too
FRESH_SEEDS = tuple(range(20, 25))  # never used before this edition was settled
FEW_SEEDS = tuple(range(5))  # of the frontier
# Seed and fold of the ablation's pairs; a fold is which 10,000 training images are held
# out: the last, or the 10,000 before them.
PAIRS = ((0, 0), (0, 1), (1, 0), (2, 1), (3, 0), (4, 1))
HOLDOUT = 10_000
TO_ADAM = {
    "return Muon(": "return keras.optimizers.Adam(",
    "        momentum=0.9,\n": "",
    "        rms_rate=None,  # singular values stay near 1\n": "",
    "        adam_lr_ratio=0.2,\n": "",
    "adam_beta_1=": "beta_1=",
    "adam_beta_2=": "beta_2=",
    "        adam_weight_decay=None,\n": "",
}
CENTER = {
    "normalize(center=False, scale=False)": "normalize(center=True, scale=False)",
    "if len(v.shape) != 4]": 'if len(v.shape) != 4 and v.name != "beta"]',
}
AVERAGE = {
    "adam_lr_ratio=0.2,": "adam_lr_ratio=0.2, use_ema=True,",
    "validation_batch_size=1_000,": "validation_batch_size=1_000, "
    "callbacks=[keras.callbacks.SwapEMAWeights()],",
}
DECAY = "keras.optimizers.schedules.PolynomialDecay(learning_rate, steps, 0.0)"
CONSTANT_RATE = {DECAY: "learning_rate"}
STRENGTH = {"ops.clip((1 - self.step / self.steps) / 0.3, 0.2, 1.0)": "1.0"}
WHOLE = {"halves = images[:half], images[half:]": "halves = (images,)"}
RELU = {'layers.Activation("silu")': 'layers.Activation("relu")'}
NO_SHIFT = {"self.draw(1.0, count, 2, 1)": "self.draw(0.0, count, 2, 1)"}
NO_TURN = {"rotation": 0.0, "stretch": 0.0}
# One change each of the recipe "assignment": the settings that are replaced, and the
# texts of the notebook's code that are.
ABLATION = {
    "as it is": ({}, {}),
    "plain: Adam, ReLU, constant rate, neither augmentation nor smoothing": (
        NO_TURN | {"learning_rate": 0.003, "label_smoothing": 0.0},
        TO_ADAM | RELU | CONSTANT_RATE | NO_SHIFT,
    ),
    "no augmentation": (NO_TURN, NO_SHIFT),
    "augmentation at constant strength": ({}, STRENGTH),
    "a constant learning rate": ({}, CONSTANT_RATE),
    "no label smoothing": ({"label_smoothing": 0.0}, {}),
    "ReLU instead of SiLU": ({}, RELU),
    "Adam instead of Muon": ({"learning_rate": 0.02}, TO_ADAM),
    "with batch norm's beta": ({"filters": [16, 32, 56, 72, 71]}, CENTER),
    "each batch as a whole": ({}, WHOLE),
    "an exponential moving average of the weights": ({}, AVERAGE),
}
# A recipe of more epochs: its name, the recipe, and the settings that are replaced.
LONGER = {"quick, 2 epochs": ("quick", {"epochs": 2})}
# Other widths of two recipes, from the smallest to the largest.
FRONTIER = {
    "assignment": (
        [5, 8, 9, 9, 10],
        [6, 10, 12, 12, 12],
        [7, 13, 15, 16, 16],
        [8, 16, 18, 18, 18],
        [9, 18, 22, 24, 26],
        [11, 22, 30, 34, 38],
        [14, 28, 42, 52, 52],
    ),
    "compact": ([7, 14, 14, 14, 15], [10, 19, 19, 19, 19], [12, 22, 22, 22, 22]),
}


@dataclass(frozen=True)
class Run:
    """One training that is wanted: its parameters, and its edits of the notebook."""

    name: str
    recipe: str
    seed: int
    overrides: dict = field(default_factory=dict)
    fold: int | None = None  # None: trained on all, evaluated on the test images
    edits: dict = field(default_factory=dict)

    def all_edits(self):
        """Return the edits, with the one that holds other images out."""
        if not self.fold:
            return self.edits
        read = 'load(data_path, "train")'
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
            "settings": settings_of(self.recipe, self.seed, self.overrides),
            "data": digest_of(self.fold, **self.parameters()),
        }

    def train(self):
        """Train by the notebook's cells and return the record to store."""
        given = {"recipe": self.recipe, "seed": self.seed, "overrides": self.overrides}
        given |= self.parameters()
        key, cells = self.key(), run_cells("train", edits=self.all_edits(), **given)
        versions = {"keras": cells["keras"].__version__}
        versions["python"] = platform.python_version()
        record = key | cells["record"] | versions
        record["loss"] = record.pop("history")["val_loss"][-1]
        return record


@functools.cache
def digest_of(fold, **parameters):
    """Return the hash of the images and labels that a run of this fold uses."""
    edits = Run("", "assignment", 0, fold=fold).all_edits()
    return run_cells("split", edits=edits, **parameters)["digest"].hexdigest()


def all_runs():
    """Return every run that the pages speak of, the most important first."""
    trainings = {name: (name, {}) for name in definitions()["RECIPES"]} | LONGER
    runs = [
        Run(name, recipe, seed, overrides)
        for seed in SEEDS + FRESH_SEEDS
        for name, (recipe, overrides) in trainings.items()
    ]
    runs += [
        Run("other widths", recipe, seed, {"filters": filters})
        for recipe, widths in FRONTIER.items()
        for seed in FEW_SEEDS
        for filters in widths
    ]
    runs += [
        Run(name, "assignment", seed, overrides, fold, edits)
        for seed, fold in PAIRS
        for name, (overrides, edits) in ABLATION.items()
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
