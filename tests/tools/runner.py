"""Runs CODE9.ipynb for the tests, the benchmark and the README: whole, or cell by cell.

No other code trains our nets; nothing here repeats a part of it.
"""

import ast
import functools
import hashlib
import io
import os
import tokenize
from pathlib import Path

import nbformat
import papermill

REPOSITORY = Path(__file__).resolve().parents[2]
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


def fingerprint(path=NOTEBOOK):
    """Return a hash of the notebook's code that determines weights and numbers.

    Left out are comments, cells tagged as report, which train nothing, and the table of
    recipes: each record holds the settings that it was made with, and they are
    compared. So text, figures and other recipes may change without a new training.
    """
    statements = [
        statement
        for cell in read_notebook(path).cells
        if cell.cell_type == "code" and "report" not in cell.metadata.get("tags", [])
        for statement in statements_of(cell.source)
    ]
    return hashlib.sha256("\n".join(statements).encode()).hexdigest()[:16]


def statements_of(source):
    """Yield each statement's text, less comments, empty lines and the table of recipes.

    It is the text and not the syntax tree, whose form differs from Python to Python.
    """
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip()
    for statement in ast.parse(source).body:
        targets = getattr(statement, "targets", [])
        if any(getattr(target, "id", "") == "RECIPES" for target in targets):
            continue
        decorators = getattr(statement, "decorator_list", [])
        first = min(node.lineno for node in (statement, *decorators))
        yield "\n".join(filter(None, lines[first - 1 : statement.end_lineno]))


@functools.cache
def definitions():
    """Return the namespace of the cell that defines the recipes."""
    namespace = {}
    run_cell("setup", namespace)
    run_cell("recipes", namespace)
    return namespace


def settings_of(recipe, overrides):
    """Return the settings that the notebook now gives a recipe, as JSON has them."""
    cells = definitions()
    return cells["Recipe"](**(cells["RECIPES"][recipe] | overrides)).model_dump()


def is_current(record):
    """Tell whether the notebook as it stands would make the run of the record again."""
    if record["fingerprint"] != fingerprint():
        return False
    if record["recipe"] not in definitions()["RECIPES"]:
        return False
    return record["settings"] == settings_of(record["recipe"], record["overrides"])


def write_whole(path, content):
    """Write the bytes to the path whole or not at all, with no half-written file."""
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)
