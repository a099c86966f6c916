"""Runs CODE9.ipynb for the tests, the benchmark and the README: whole, or cell by cell.

The notebook is the only training code there is; nothing here repeats a part of it.
"""

import hashlib
import json
import os
from pathlib import Path

import nbformat
import papermill

REPOSITORY = Path(__file__).resolve().parent.parent
NOTEBOOK = REPOSITORY / "CODE9.ipynb"
DATA = REPOSITORY / "tests" / "data" / "mnist.npz"


def read_notebook(path=NOTEBOOK):
    """Return the notebook as nbformat reads it."""
    return nbformat.read(path, as_version=4)


def run_notebook(output, parameters, source=NOTEBOOK, cwd=REPOSITORY, **options):
    """Execute the notebook with papermill into the file output, and return its record.

    Raises ValueError for a parameter that the notebook does not have, where papermill
    alone only warns, and papermill.PapermillExecutionError if a cell fails.
    """
    known = papermill.inspect_notebook(source)
    if unknown := set(parameters) - set(known):
        raise ValueError(f"No parameter {sorted(unknown)}: choose from {list(known)}.")
    executed = papermill.execute_notebook(
        source, output, parameters, cwd=cwd, progress_bar=False, **options
    )
    return find_record(executed)


def find_record(notebook):
    """Return the results record that the executed notebook displayed, or None."""
    for cell in reversed(notebook.cells):
        for output in cell.get("outputs", []):
            if record := output.get("data", {}).get("application/json"):
                return record
    return None


def run_cell(identifier, namespace):
    """Run the one code cell with this id in the namespace, in this process."""
    cell = next(cell for cell in read_notebook().cells if cell.id == identifier)
    exec(compile(cell.source, f"cell {identifier}", "exec"), namespace)


def run_cells(last, **parameters):
    """Run the notebook's code cells up to the one with the id last, in this process.

    Returns the namespace of the cells. The parameters replace those of the notebook,
    as papermill does it; the working directory is the caller's.
    """
    namespace = {"In": [""]}
    for cell in read_notebook().cells:
        if cell.cell_type == "code":
            run_cell(cell.id, namespace)
        if cell.id == "parameters":
            namespace |= parameters
        if cell.id == last:
            return namespace
    raise ValueError(f"The notebook has no cell with the id {last!r}.")


def fingerprint(notebook=None):
    """Return a hash of the notebook's code, but for cells tagged as report.

    Text, figures and stored outputs may change without a new training; what determines
    the weights and the numbers may not.
    """
    cells = (notebook or read_notebook()).cells
    sources = [
        cell.source
        for cell in cells
        if cell.cell_type == "code" and "report" not in cell.metadata.get("tags", [])
    ]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:16]


def write_whole(path, content):
    """Write the bytes to the path whole or not at all, with no half-written file."""
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)
