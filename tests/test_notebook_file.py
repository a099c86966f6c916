"""The stored notebook: as Colab, GitHub, papermill and a reader need it."""

import ast
import json
import re
import shutil
import subprocess
import sys

import nbformat
import papermill
import pytest
from runner import (
    NOTEBOOK,
    REPOSITORY,
    find_record,
    fingerprint,
    read_notebook,
    settings_of,
)

PARAMETERS = {
    "recipe": ("str", '"assignment"'),
    "seed": ("int", "0"),
    "epochs": ("int", "0"),
    "holdout": ("int", "0"),
    "overrides": ("dict", "{}"),
    "data_path": ("str", '""'),
    "output_dir": ("str", '""'),
}


@pytest.fixture(scope="module")
def notebook():
    """The stored notebook."""
    return read_notebook()


@pytest.fixture(scope="module")
def code_cells(notebook):
    """Its code cells."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_valid_and_every_cell_has_an_id(notebook):
    nbformat.validate(notebook)
    stored = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (stored["nbformat"], stored["nbformat_minor"]) >= (4, 5)
    identifiers = [cell["id"] for cell in stored["cells"]]
    assert len(set(identifiers)) == len(identifiers)


def test_it_asks_for_python_and_a_gpu_and_stores_nothing_else(notebook):
    metadata = notebook.metadata
    assert metadata.kernelspec.name == "python3"
    assert metadata.kernelspec.language == "python"
    assert metadata.accelerator == "GPU"
    assert not {"widgets", "papermill"} & set(metadata)


def test_the_parameters_are_the_ones_promised(notebook):
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    found = papermill.inspect_notebook(str(NOTEBOOK))
    seen = {n: (p["inferred_type_name"], p["default"]) for n, p in found.items()}
    assert seen == PARAMETERS
    assert all(len(parameter["help"]) > 20 for parameter in found.values())


def test_every_code_cell_was_run_in_order_without_trouble(notebook, code_cells):
    counts = [cell.execution_count for cell in code_cells]
    assert counts == list(range(1, len(code_cells) + 1))
    for cell in code_cells:
        assert "injected-parameters" not in cell.metadata.get("tags", [])
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            assert not [kind for kind in output.get("data", {}) if "widget" in kind]
            assert not {"\b", "\r"} & set(output.get("text", ""))


def test_it_is_small_and_its_cells_are_short(notebook, code_cells):
    assert NOTEBOOK.stat().st_size < 500_000
    for cell in code_cells:
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert max(map(len, lines)) <= 88, cell.id
        assert len(lines) <= 30, cell.id
    for before, cell in zip(notebook.cells, notebook.cells[1:], strict=False):
        assert not before.cell_type == cell.cell_type == "code", cell.id


def test_every_figure_has_alternative_text(code_cells):
    figures = [
        output.metadata["image/png"]["alt"]
        for cell in code_cells
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(figures) >= 3
    assert all(len(alt) > 20 for alt in figures)


def test_the_stored_run_is_whole_and_keeps_its_promise(notebook):
    record = find_record(notebook)
    assert notebook.metadata.code9.fingerprint == fingerprint()
    assert record["settings"] == settings_of("assignment", {})
    assert record["recipe"] == "assignment"
    assert (record["seed"], record["overrides"]) == (0, {})
    assert record["evaluated_on"] == "test"
    assert record["published_mnist"] is True
    assert record["training_examples"] == 60_000
    assert record["evaluation_examples"] == 10_000
    assert record["parameters"]["total"] < 15_000
    assert len(record["history"]["loss"]) == record["epochs"] <= 20
    assert record["accuracy"] >= 0.994


def test_the_evaluation_is_of_the_training_that_the_log_shows(notebook):
    """One look scores what the log's last line says, three what is printed after it."""
    record, cells = find_record(notebook), {cell.id: cell for cell in notebook.cells}
    log = "".join(output.text for output in cells["fit"].outputs)
    lines = [line.split() for line in log.splitlines() if line.strip()[:1].isdigit()]
    assert [int(line[0]) for line in lines[:-1]] == list(range(1, record["epochs"] + 1))
    one_look = lines[-2][-1].rstrip("%")
    assert float(one_look) == pytest.approx(100 * record["one_look_accuracy"])
    evaluated = "".join(output.text for output in cells["evaluate"].outputs)
    assert f"[{record['loss']:.4f}, {record['accuracy']:.4f}]" in evaluated


def test_ruff_finds_nothing():
    for command in (["check"], ["format", "--check"]):
        subprocess.run([sys.executable, "-m", "ruff", *command], check=True)


def test_no_tensorflow_call_in_the_notebook(code_cells):
    """So that Keras' other backends run the same cells."""
    for cell in code_cells:
        nodes = ast.walk(ast.parse(cell.source))
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        assert not {"tf", "tensorflow", "jax", "torch"} & names


def test_the_repository_has_its_shape():
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    visible = {name for name in top if not name.startswith(".")}
    wanted = {"README.md", "CODE9.ipynb", "requirements.txt", "images", "tests"}
    assert visible == wanted
    assert not re.search(r"\.(pyc|log)$", listed.stdout, re.MULTILINE)
