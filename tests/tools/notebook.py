"""Runs CODE9.ipynb for the tests, the benchmark and the README: whole, or cell by cell.

No other code trains our networks; nothing here repeats a part of it.
"""

import ast
import functools
import hashlib
from pathlib import Path

import nbformat
import papermill

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOK = REPOSITORY / "CODE9.ipynb"
DATA = REPOSITORY / "tests" / "data" / "mnist.npz"
SHOWS = ("digits", "rules", "augmented")  # cells that a training can do without
# The cells that weights and accuracy depend on; the settings are in each record.
TRAINS = [
    "setup",
    "options",
    "load",
    "split",
    "deskew",
    "network",
    "augment",
    "optimizer",
    "compile",
    "train",
]


def read_notebook(edits=()):
    """Return the notebook, with the texts of edits, a dict, replaced in its code.

    Raises ValueError if a text does not stand in exactly one cell.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for old, new in dict(edits).items():
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        cells = [cell for cell in code if old in cell.source]
        if len(cells) != 1:
            raise ValueError(f"{len(cells)} cells hold {old!r}: edit one of them.")
        cells[0].source = cells[0].source.replace(old, new)
    return notebook


def run_notebook(output, parameters):
    """Execute the notebook with papermill into the file output, and return its record.

    Raises papermill.PapermillExecutionError if a cell fails.
    """
    executed = papermill.execute_notebook(
        NOTEBOOK, output, parameters, cwd=REPOSITORY, progress_bar=False
    )
    return find_record(executed)


def cell_of(notebook, identifier):
    """Return the notebook's cell with this id."""
    return next(cell for cell in notebook.cells if cell.id == identifier)


def find_record(notebook):
    """Return the record that the executed notebook displayed."""
    return cell_of(notebook, "record").outputs[-1]["data"]["application/json"]


def run_cell(identifier, namespace, notebook=None):
    """Run the one code cell with this id in the namespace, in this process."""
    cell = cell_of(notebook or read_notebook(), identifier)
    exec(compile(cell.source, f"cell {identifier}", "exec"), namespace)


def run_cells(last, edits=(), skip=SHOWS, **parameters):
    """Run the code cells up to the one with the id last, in this process.

    Returns the namespace of the cells, of which some that only draw are left out. The
    parameters replace those of the notebook, as papermill does it; the working
    directory is the caller's.
    """
    namespace, notebook = {}, read_notebook(edits=edits)
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.id not in skip:
            run_cell(cell.id, namespace, notebook)
        if cell.id == "parameters":
            namespace |= parameters
        if cell.id == last:
            return namespace
    raise ValueError(f"The notebook has no cell with the id {last!r}.")


class _Bare(ast.NodeTransformer):
    """Strips from a syntax tree what determines no number: docstrings and messages."""

    def visit_Expr(self, node):
        value = node.value
        says = isinstance(value, ast.Call) and ast.unparse(value.func) == "print"
        return None if says or isinstance(value, ast.Constant) else node

    def visit_Assign(self, node):
        return None if ast.unparse(node.targets) == "message" else node

    def visit_Raise(self, node):
        return ast.Raise()


def bare(code):
    """Return Python code without comments, docstrings and messages."""
    return ast.unparse(_Bare().visit(ast.parse(code)))


def code_that_trains(notebook):
    """Return the code of the cells that a training runs through, as text.

    What determines no number is left out, and so are the cells that check or show: a
    record holds the settings, and the others change nothing.
    """
    return "\n".join(bare(cell_of(notebook, name).source) for name in TRAINS)


def hash_of(text):
    """Return a short hash."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def fingerprint(edits=()):
    """Return a hash of the code that trains, with edits, pairs of texts, in place."""
    return hash_of(code_that_trains(read_notebook(edits)))


@functools.cache
def definitions():
    """Return the namespace of the cells up to the one that checks the settings."""
    return run_cells("check")


def settings_of(seed=0, epochs=20, overrides=None):
    """Return the settings that the notebook now gives a run, as JSON has them."""
    cells = definitions() | {"seed": seed, "epochs": epochs}
    cells |= {"overrides": overrides or {}}
    run_cell("check", cells)
    return cells["chosen"]
