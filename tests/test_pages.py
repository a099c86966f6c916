"""The stored notebook, both READMEs and the records: in step with one another."""

import ast
import hashlib
import json
import re
import shutil
import subprocess
import sys

import matplotlib
import nbformat
import numpy as np
import papermill
import PIL.Image
import pytest
import report
from benchmark import (
    FRESH_SEEDS,
    SEEDS,
    ablation_runs,
    all_runs,
    find,
    frontier_runs,
    read_records,
    seed_runs,
)
from notebook import DATA, NOTEBOOK, REPOSITORY, find_record, read_notebook
from report import IMAGES, PAGES, SHOWN, figures, fill, fill_notebook, generated_parts

PARAMETERS = {
    "recipe": ("str", '"assignment"'),
    "seed": ("int", "0"),
    "epochs": ("int", "0"),
    "holdout": ("int", "0"),
    "overrides": ("dict", "{}"),
    "data_path": ("str", '""'),
    "output_dir": ("str", '""'),
}
RUNS = {
    "seeds": lambda: seed_runs(SEEDS),
    "fresh seeds": lambda: seed_runs(FRESH_SEEDS),
    "ablation": ablation_runs,
    "frontier": frontier_runs,
}
# The parts that must be whole; "speed" is the record of speed.py.
REQUIRED = ["seeds", "fresh seeds"]  # to come: all of RUNS, and "speed"


@pytest.fixture(scope="module")
def notebook():
    """The stored notebook."""
    return read_notebook()


@pytest.fixture(scope="module")
def code_cells(notebook):
    """Its code cells by id."""
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


@pytest.fixture(scope="module")
def parts(notebook):
    """What the generated parts ought to be."""
    return generated_parts(notebook, read_records())


def test_the_notebook_is_valid_and_every_cell_has_an_id(notebook):
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
    assert "version" not in metadata.language_info
    assert not {"widgets", "papermill"} & set(metadata)
    assert not any("execution" in cell.metadata for cell in notebook.cells)


def test_the_parameters_are_the_ones_promised(notebook):
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert [cell.id for cell in tagged] == ["parameters"]
    found = papermill.inspect_notebook(str(NOTEBOOK))
    seen = {n: (p["inferred_type_name"], p["default"]) for n, p in found.items()}
    assert seen == PARAMETERS
    assert all(len(parameter["help"]) > 20 for parameter in found.values())


def test_every_code_cell_was_run_in_order_without_trouble(code_cells):
    counts = [cell.execution_count for cell in code_cells.values()]
    assert counts == list(range(1, len(counts) + 1))
    for cell in code_cells.values():
        assert "injected-parameters" not in cell.metadata.get("tags", [])
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            assert not [kind for kind in output.get("data", {}) if "widget" in kind]
            assert not {"\b", "\r"} & set(output.get("text", ""))


def test_it_is_small_and_each_cell_is_short_and_explained(notebook, code_cells):
    assert NOTEBOOK.stat().st_size < 500_000
    for name, cell in code_cells.items():
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert max(map(len, lines)) <= 88, name
        assert len(lines) <= 25, name
    for before, cell in zip(notebook.cells, notebook.cells[1:], strict=False):
        assert not before.cell_type == cell.cell_type == "code", cell.id


def test_every_figure_has_alternative_text(code_cells):
    figures = [
        output.metadata.get("image/png", output.metadata)["alt"]
        for cell in code_cells.values()
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(figures) >= 5
    assert all(len(alt) > 20 for alt in figures)


def test_no_call_of_a_backend_in_the_notebook(code_cells):
    """So that any backend of Keras runs the same cells."""
    for cell in code_cells.values():
        nodes = list(ast.walk(ast.parse(cell.source)))
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        for node in nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [getattr(node, "module", None), *(a.name for a in node.names)]
                names |= {module.split(".")[0] for module in modules if module}
        assert not {"tf", "tensorflow", "jax", "jnp", "torch"} & names


def test_the_stored_run_is_of_this_code_and_keeps_its_promise(notebook, code_cells):
    record = find_record(notebook)
    assert notebook.metadata.code9.fingerprint == report.fingerprint()
    assert record["settings"] == report.settings_of("assignment", seed=0)
    assert (record["evaluated_on"], record["evaluation_images"]) == ("test", 10_000)
    assert record["training_images"] == 60_000
    assert record["parameters"] < 15_000
    assert len(record["history"]["loss"]) == record["settings"]["epochs"] <= 20
    assert record["accuracy"] == record["history"]["val_accuracy"][-1] >= 0.994
    printed = "".join(
        output.get("text", "") for output in code_cells["evaluate"].outputs
    )
    loss = record["history"]["val_loss"][-1]
    assert f"[{loss:.4f}, {record['accuracy']:.4f}]" in printed
    digest = hashlib.sha256()  # another test compares tests/data to the original
    with np.load(DATA) as arrays:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            digest.update(arrays[name])
    assert record["data"] == digest.hexdigest()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_pages_are_those_of_the_records(page, parts):
    text = page.read_text(encoding="utf-8")
    assert "<!-- generated:" in text
    assert fill(text, parts) == text
    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
        assert (page.parent / link).exists(), link
    known = set(papermill.inspect_notebook(str(NOTEBOOK)))
    assert set(re.findall(r" -p (\w+) \w", text)) <= known


def test_the_notebook_is_that_of_the_records(parts):
    assert fill_notebook(read_notebook(), parts) == read_notebook()


def test_a_number_that_is_changed_by_hand_is_seen(parts):
    text = PAGES[0].read_text(encoding="utf-8")
    number = re.search(r"<!-- generated: seeds -->.*?(\d)\d ±", text, re.DOTALL)
    typed = f"{text[: number.start(1)]}0{text[number.end(1) :]}"
    assert fill(typed, parts) == text != typed
    with pytest.raises(KeyError, match="no such part"):
        fill("<!-- generated: no such part -->\n<!-- end: no such part -->", parts)


@pytest.mark.parametrize("name", ["comparison.png", "ablation.png", *SHOWN.values()])
def test_the_images_are_those_of_the_stored_records(name, notebook):
    drawn_by = PIL.Image.open(IMAGES / name).info.get("Software")
    if (
        name not in SHOWN.values()
        and drawn_by != f"matplotlib {matplotlib.__version__}"
    ):
        pytest.skip(f"{name} was drawn by {drawn_by}, another may draw otherwise.")
    assert figures(notebook, read_records())[name] == (IMAGES / name).read_bytes()


def test_the_readme_is_short_and_shows_every_image():
    text = PAGES[0].read_text(encoding="utf-8")
    assert len(text.split()) <= 1_000
    shown = {f"images/{path.name}" for path in IMAGES.iterdir()}
    assert set(re.findall(r"!\[[^]]{20,}\]\(([^)]+)\)", text)) == shown


@pytest.mark.parametrize("part", REQUIRED)
def test_the_records_are_whole(part):
    if part == "speed":
        timed = json.loads(report.SPEED.read_text(encoding="utf-8"))
        assert timed["fingerprint"] == report.fingerprint(), "run tests/tools/speed.py"
        return
    records, runs = read_records(), RUNS[part]()
    missing = [run.name for run in runs if find(run, records) is None]
    assert not missing, f"{part}: {len(missing)} missing, run tests/tools/benchmark.py"


def test_every_record_is_of_a_run_that_is_wanted():
    records = read_records()
    wanted = [find(run, records) for run in all_runs()]
    assert [record for record in records if record not in wanted] == []


def test_ruff_finds_nothing():
    for command in (["check"], ["format", "--check"]):
        subprocess.run([sys.executable, "-m", "ruff", *command], check=True)


def test_the_repository_has_its_shape():
    listed = shutil.which("git") and subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if not listed or listed.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    wanted = {"README.md", "CODE9.ipynb", "requirements.txt", "images", "tests"}
    assert {name for name in top if not name.startswith(".")} == wanted
    assert not re.search(r"\.(pyc|log)$", listed.stdout, re.MULTILINE)
