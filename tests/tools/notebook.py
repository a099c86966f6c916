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


def read_notebook(edits=()):
    """Return the notebook, with the texts of edits, a dict, replaced in its code.

    Raises ValueError if a text does not stand in exactly one cell.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for old, new in dict(edits).items():
        cells = [cell for cell in notebook.cells if old in cell.source]
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


def run_cells(last, edits=(), skip=("digits", "augmented"), **parameters):
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
        return None if isinstance(node.value, ast.Constant) else node

    def visit_Assign(self, node):
        return None if ast.unparse(node.targets) == "message" else node

    def visit_Raise(self, node):
        return ast.Raise()


def code_that_trains(notebook):
    """Return the code that determines weights and record, and nothing else, as text.

    That is what the cell "train" needs, directly or not: of each name, the statement
    that binds it. Imports, the settings (a record holds them), comments, docstrings and
    messages are left out.
    """

    def names_in(statement):
        return [n for n in ast.walk(statement) if isinstance(n, ast.Name)]

    cells = {c.id: ast.parse(c.source).body for c in notebook.cells if "outputs" in c}
    order = list(cells)
    wanted, bound = [*cells["train"]], {}
    skipped = {"parameters", "settings", "digits", "augmented", "output"}
    for identifier in set(order[: order.index("train")]) - skipped:
        for statement in cells[identifier]:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                continue
            if ast.unparse(statement).startswith(("os.environ", "keras.")):
                wanted.append(statement)
            stored = {n.id for n in names_in(statement) if isinstance(n.ctx, ast.Store)}
            for name in {statement.name} if hasattr(statement, "name") else stored:
                bound.setdefault(name, []).append(statement)
    kept = set()
    while wanted:
        kept.add(statement := wanted.pop())
        for node in names_in(statement):
            wanted += bound.pop(node.id, ())
    return "\n".join(sorted(ast.unparse(_Bare().visit(each)) for each in kept))


@functools.cache
def fingerprint(edits=()):
    """Return a hash of the code that trains, with edits, pairs of texts, in place."""
    code = code_that_trains(read_notebook(edits))
    return hashlib.sha256(code.encode()).hexdigest()[:16]


@functools.cache
def definitions():
    """Return the namespace of the cells that define recipes and settings."""
    return run_cells("settings", skip=("load", "split", "digits"))


def settings_of(recipe, seed=0, overrides=None):
    """Return the settings that the notebook now gives a recipe, as JSON has them."""
    given = {"recipe": recipe, "seed": seed, "overrides": overrides or {}}
    cells = definitions() | given
    run_cell("settings", cells)
    return cells["settings"].model_dump()
