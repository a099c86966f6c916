"""Trains recipes over fixed seeds and stores a record of each run.

Every run is the whole notebook, through papermill. A run that is stored already, by
the same code of the notebook, is not trained again, so an interrupted benchmark goes
on where it was. tests/tools/report.py turns the records into tables and figures.

The notebook trains on one thread, so as many jobs at once as there are cores get most
done; each record says how many there were.
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
from runner import (
    REPOSITORY,
    definitions,
    fingerprint,
    is_current,
    read_notebook,
    run_notebook,
    write_whole,
)
from tqdm import tqdm

STORE = REPOSITORY / "tests" / "records" / "benchmark.json"
SEEDS = tuple(range(10))  # fixed before the first run, and the same for each recipe
HOLDOUT = 10_000
OTHER_SEEDS = tuple(range(10, 15))  # trained when all was settled, as a stranger would
ABLATION_SEEDS = SEEDS[:5]
# One change each of the recipe "assignment", measured on held-out training images: the
# recipe's fields that are replaced, and the texts of the notebook's code that are.
NORMALIZATION = "layers.BatchNormalization(center=False, scale=False, momentum=0.9)"
RULE = """if "kernel" not in v.name or len(v.shape) != 4]"""
ABLATION = {
    "as it is": ({}, {}),
    "no augmentation": ({"rotation": 0, "stretch": 0, "shift": 0}, {}),
    "warps that do not fade": (
        {},
        {"ops.clip((1 - self.step / self.steps) / 0.3, 0.2, 1.0)": "1.0"},
    ),
    "a constant learning rate": (
        {},
        {"warmup_steps=warm_up,": "warmup_steps=warm_up, alpha=1.0,"},
    ),
    "labels not smoothed": ({"label_smoothing": 0}, {}),
    "ReLU instead of SiLU": ({}, {'Activation("silu")': 'Activation("relu")'}),
    "full convolutions": ({"separable": False, "filters": [16, 24, 24, 24]}, {}),
    "pooled once": ({"pool_after": 0, "filters": [16, 32, 56, 72, 72]}, {}),
    "normalization's offset put back": (
        {"filters": [16, 48, 72, 102]},  # offsets count, too
        {
            NORMALIZATION: NORMALIZATION.replace("center=False", "center=True"),
            RULE: """if "kernel" not in v.name and v.name != "beta"]""",
            '"classes" in': 'len(variable.shape) == 1 or "classes" in',
        },
    ),
    "an average of the weights": (
        {},
        {
            "Muon(schedule": "Muon(schedule, use_ema=True, ema_momentum=0.99",
            "callbacks=[": "callbacks=[keras.callbacks.SwapEMAWeights(),",
        },
    ),
    "Adam instead of Muon": (
        {"learning_rate": 0.02},
        {
            "Muon(schedule, rms_rate=None, weight_decay=None, **adam)": (
                "keras.optimizers.Adam(schedule, beta_2=0.99)"
            )
        },
    ),
}

# Runs on the hold-out: the ablation, and the other recipes as they are.
HELD_OUT = (*ABLATION, "compact", "quick")


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


def wanted_runs(recipes, seeds, held_out):
    """Yield name and parameters of the runs to make; those on the hold-out last."""
    for seed in seeds:
        for recipe in recipes:
            yield recipe, {"recipe": recipe, "seed": seed, "overrides": {}}
    for seed in ABLATION_SEEDS:
        for name in held_out:
            recipe = "assignment" if name in ABLATION else name
            overrides, _ = ABLATION.get(name, ({}, {}))
            parameters = {"recipe": recipe, "seed": seed, "holdout": HOLDOUT}
            yield name, parameters | {"overrides": overrides}


def is_stored(name, parameters, records):
    """Tell whether a current record has this name and these parameters."""
    wanted = {key: value for key, value in parameters.items() if key != "holdout"}
    wanted["evaluated_on"] = "holdout" if parameters.get("holdout") else "test"
    return any(
        record["name"] == name and wanted.items() <= record.items()
        for record in records
        if is_current(record) and is_edited_so(record)
    )


def edits_of(name):
    """Return the texts that a run of this name replaces in the notebook."""
    return ABLATION.get(name, ({}, {}))[1]


def is_edited_so(record):
    """Tell whether the record's run was edited as a run of that name is edited now."""
    return record["edits"] == edits_of(record["name"])


def edited(edits):
    """Return the notebook with each of the texts replaced."""
    notebook = read_notebook()
    for old, new in edits.items():
        (cell,) = (cell for cell in notebook.cells if old in cell.source)
        cell.source = cell.source.replace(old, new)
    return notebook


def train(name, parameters):
    """Run the notebook with the edits of that name; return its hash and record."""
    code = fingerprint()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "CODE9.ipynb"
        nbformat.write(edited(edits_of(name)), source)
        run = Path(folder) / "run.ipynb"
        record = run_notebook(run, parameters, source=source)
    if fingerprint() != code:
        raise RuntimeError("CODE9.ipynb was changed while it ran: the run is dropped.")
    record["one_look_loss"] = record.pop("history")["val_loss"][-1]
    return code, record


def main():
    """Make the runs that the arguments ask for and that are not stored yet."""
    known = list(definitions()["RECIPES"])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="*", choices=known, default=known)
    parser.add_argument("--seeds", nargs="*", type=int, default=[*SEEDS, *OTHER_SEEDS])
    parser.add_argument(
        "--ablation",
        nargs="*",
        choices=HELD_OUT,
        metavar="NAME",
        help="add runs on the hold-out: changes or recipes by name, or all",
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    arguments = parser.parse_args()
    stored, held_out = read_records(), arguments.ablation
    if held_out is not None:
        held_out = held_out or HELD_OUT
    runs = [
        (name, parameters)
        for name, parameters in wanted_runs(
            arguments.recipes, arguments.seeds, held_out or []
        )
        if not is_stored(name, parameters, stored)
    ]
    machine = describe_machine(arguments.jobs)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(arguments.jobs, context) as pool:
        names = {pool.submit(train, *run): run[0] for run in runs}
        finished = concurrent.futures.as_completed(names)
        try:
            for future in tqdm(finished, total=len(names), desc="runs"):
                code, record = future.result()
                name = names[future]
                named = {"fingerprint": code, "name": name, "machine": machine}
                named["edits"] = edits_of(name)
                write_records([*read_records(), named | record])
        except BaseException:  # what has not begun is left to the next time
            pool.shutdown(cancel_futures=True)
            raise


if __name__ == "__main__":
    main()
