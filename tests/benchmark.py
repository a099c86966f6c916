"""Trains recipes over fixed seeds and stores one record a run in tests/benchmark.json.

    tests/benchmark.py [--recipes NAME ...] [--seeds N ...] [--ablation] [--jobs N]

Every run is the whole notebook, through papermill. A run that is stored already, by
the same code of the notebook, is not trained again, so an interrupted benchmark goes
on where it was. `python tests/report.py` turns the records into tables and figures.

The net is too small to keep many cores busy, so several jobs at once, each with its
share of the cores, get more done; each record says how many there were.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import platform
import tempfile
from pathlib import Path

import nbformat
from notebook import (
    REPOSITORY,
    definitions,
    fingerprint,
    is_current,
    read_notebook,
    run_notebook,
    settings_of,
    write_whole,
)
from tqdm import tqdm

STORE = REPOSITORY / "tests" / "benchmark.json"
SEEDS = tuple(range(10))  # fixed before the first run, and the same for each recipe
HOLDOUT = 10_000
ABLATION_SEEDS = SEEDS[:3]
ABLATION_EPOCHS = 10
# One change each, of the recipe "assignment"; measured on held-out training images.
ABLATION = {
    "as it is": {},
    "full convolutions instead of separable": {
        "separable": False,
        "stages": [[16], [16, 16], [16, 16, 16, 16]],
    },
    "no augmentation": {"rotation": 0.0, "stretch": 0.0, "shear": 0.0, "shift": 0.0},
    "one view instead of five": {"views": False},
    "no average of the weights": {"average": 0.0},
    "an average over three times the steps": {"average": 0.06},
    "a rate that does not fall": {"decay": False},
    "Adam instead of Muon": {"muon": False},
    "labels not smoothed": {"smoothing": 0.0},
    "ReLU instead of SiLU": {"activation": "relu"},
    "normalization's offset put back": {},
}
# What the notebook's own rules refuse is tried in a copy of it, so changed.
EDITS = {
    "normalization's offset put back": {
        "center=False, scale": "center=True, scale",
        '"pointwise_kernel", "gamma"}': '"pointwise_kernel", "gamma", "beta"}',
        '"additive": 0,': '"additive": sum(w.shape[0] for w in model.weights'
        ' if w.name == "beta"),',
    }
}


def read_records():
    """Return the stored records, oldest first."""
    return json.loads(STORE.read_text(encoding="utf-8")) if STORE.exists() else []


def write_records(records):
    """Store the records, whole or not at all, one a line."""
    lines = ",\n".join(json.dumps(record) for record in records)
    write_whole(STORE, f"[\n{lines}\n]\n".encode())


def describe_machine(jobs):
    """Return what the time of a run depends on."""
    return {"system": platform.system(), "cores": os.cpu_count(), "jobs": jobs}


def wanted_runs(recipes, seeds, ablation):
    """Yield name and parameters of the runs to make; those of the ablation last."""
    for recipe in recipes:
        for seed in seeds:
            yield recipe, {"recipe": recipe, "seed": seed}
    if ablation:
        for seed in ABLATION_SEEDS:
            for name, changes in ABLATION.items():
                short = {"epochs": ABLATION_EPOCHS, "holdout": HOLDOUT}
                parameters = {"recipe": "assignment", "seed": seed}
                yield name, parameters | short | {"overrides": changes}


def is_stored(name, parameters, records):
    """Tell whether a current record has this name and these parameters."""
    wanted = {"name": name, "overrides": {}} | parameters
    settings = settings_of(wanted["recipe"], wanted["overrides"])
    wanted.setdefault("epochs", settings["epochs"])
    if holdout := wanted.pop("holdout", 0):
        wanted["evaluation_examples"] = holdout
    wanted["evaluated_on"] = "holdout" if holdout else "test"
    return any(
        all(record[name] == value for name, value in wanted.items())
        for record in records
        if is_current(record) and is_edited_so(record)
    )


def is_edited_so(record):
    """Tell whether the record's run was edited as a run of that name is edited now."""
    return record.get("edits", {}) == EDITS.get(record["name"], {})


def edited(edits):
    """Return the notebook with each of the texts, found once, replaced."""
    notebook = read_notebook()
    for old, new in edits.items():
        (cell,) = (cell for cell in notebook.cells if old in cell.source)
        cell.source = cell.source.replace(old, new)
    return notebook


def train(name, parameters, threads):
    """Run the notebook, its operations on so many threads; return hash and record."""
    os.environ["TF_NUM_INTRAOP_THREADS"] = str(threads)
    code = fingerprint()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "CODE9.ipynb"
        nbformat.write(edited(EDITS.get(name, {})), source)
        run = Path(folder) / "run.ipynb"
        record = run_notebook(run, parameters, source=source)
    if fingerprint() != code:
        raise RuntimeError("CODE9.ipynb was changed while it ran: the run is dropped.")
    del record["history"]
    return code, record


def main():
    """Make the runs that the arguments ask for and that are not stored yet."""
    known = list(definitions()["RECIPES"])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="*", choices=known, default=known)
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--ablation", action="store_true", help="runs on the hold-out")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    arguments = parser.parse_args()
    stored = read_records()
    runs = [
        (name, parameters)
        for name, parameters in wanted_runs(
            arguments.recipes, arguments.seeds, arguments.ablation
        )
        if not is_stored(name, parameters, stored)
    ]
    machine = describe_machine(arguments.jobs)
    threads = max(1, machine["cores"] // arguments.jobs)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(arguments.jobs, context) as pool:
        names = {pool.submit(train, *run, threads): run[0] for run in runs}
        finished = concurrent.futures.as_completed(names)
        try:
            for future in tqdm(finished, total=len(names), desc="runs"):
                code, record = future.result()
                name = names[future]
                named = {"fingerprint": code, "name": name, "machine": machine}
                if name in EDITS:
                    named["edits"] = EDITS[name]
                write_records([*read_records(), named | record])
        except BaseException:  # what has not begun is left to the next time
            pool.shutdown(cancel_futures=True)
            raise


if __name__ == "__main__":
    main()
