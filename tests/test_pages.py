"""The stored notebook, both READMEs and the records: in step with one another."""

import hashlib
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
from benchmark import read_records, whole_records
from notebook import DATA, NOTEBOOK, read_notebook
from report import IMAGES, PAGES, SHOWN, figures, fill, generated_parts


@pytest.fixture(scope="module")
def notebook():
    """The stored notebook."""
    return read_notebook()


@pytest.fixture(scope="module")
def code_cells(notebook):
    """Its code cells by id."""
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def test_the_notebook_asks_for_python_and_a_gpu_and_stores_nothing_else(notebook):
    nbformat.validate(notebook)
    metadata = notebook.metadata
    assert (metadata.kernelspec.name, metadata.accelerator) == ("python3", "GPU")
    assert "version" not in metadata.language_info
    assert not {"widgets", "papermill"} & set(metadata)
    assert not any("execution" in cell.metadata for cell in notebook.cells)


def test_the_parameters_are_the_ones_promised():
    found = papermill.inspect_notebook(str(NOTEBOOK))
    defaults = {name: parameter["default"] for name, parameter in found.items()}
    expected = {"recipe": '"assignment"', "seed": "0", "epochs": "0", "holdout": "0"}
    expected |= {"overrides": "{}", "data_path": '""', "output_dir": '""'}
    assert defaults == expected
    assert all(len(parameter["help"]) > 20 for parameter in found.values())


def test_every_code_cell_was_run_in_order_without_trouble(code_cells):
    counts = [cell.execution_count for cell in code_cells.values()]
    assert counts == list(range(1, len(counts) + 1))
    for cell in code_cells.values():
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            assert not [kind for kind in output.get("data", {}) if "widget" in kind]
            assert not {"\b", "\r"} & set(output.get("text", ""))


def test_it_is_small_and_each_cell_is_short_and_explained(notebook, code_cells):
    """And no cell calls a backend, so that any backend of Keras runs the same cells."""
    assert NOTEBOOK.stat().st_size < 500_000
    for name, cell in code_cells.items():
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert len(lines) <= 25, name
        assert not re.search(r"\b(import|from) (tensorflow|jax|torch)\b", cell.source)
    for before, cell in zip(notebook.cells, notebook.cells[1:], strict=False):
        assert not before.cell_type == cell.cell_type == "code", cell.id


def test_the_stored_run_is_of_this_code_and_keeps_its_promise(notebook, code_cells):
    record = report.stored_run(notebook)
    assert (record["evaluated_on"], record["evaluation_images"]) == ("test", 10_000)
    assert record["training_images"] == 60_000
    assert record["parameters"] < 15_000
    assert len(record["history"]["loss"]) == record["settings"]["epochs"] <= 20
    assert record["accuracy"] == record["history"]["val_accuracy"][-1] >= 0.994
    loss = record["history"]["val_loss"][-1]
    printed = code_cells["evaluate"].outputs[0].text
    assert f"[{loss:.4f}, {record['accuracy']:.4f}]" in printed


def test_the_repository_holds_the_published_mnist(mnist):
    """Each array as its IDX file: the MD5 sum is in the README of the data."""
    published = DATA.with_name("README.md").read_text(encoding="utf-8")
    for array in mnist.values():
        header = np.array([0x800 + array.ndim, *array.shape], ">i4").tobytes()
        assert hashlib.md5(header + array.tobytes()).hexdigest() in published


def test_the_texts_are_those_of_the_records(notebook):
    """Whatever stands between the markers, the generated parts take its place."""
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    texts += [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    parts, named = generated_parts(notebook, whole_records()), set()
    for text in texts:
        starts = re.findall(r"<!-- generated: (.+) -->\n", text)
        assert starts == re.findall(r"\n<!-- end: (.+) -->", text)
        named |= set(starts)
        typed = re.sub(r"(<!-- generated.*\n)(.*\n)*?(<!-- end)", r"\1typed\n\3", text)
        assert fill(typed, parts) == text
    assert named == set(parts)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_pages_name_what_there_is(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
        assert (page.parent / link).exists(), link
    known = set(papermill.inspect_notebook(str(NOTEBOOK)))
    assert set(re.findall(r" -p (\w+) \w", text)) <= known


@pytest.mark.parametrize("name", ["comparison.png", "ablation.png", *SHOWN.values()])
def test_the_images_are_those_of_the_stored_records(name, notebook):
    drawn_by = PIL.Image.open(IMAGES / name).info.get("Software", "the notebook")
    if drawn_by.startswith("Matplotlib") and matplotlib.__version__ not in drawn_by:
        pytest.skip(f"{name} was drawn by {drawn_by}, another may draw otherwise.")
    assert figures(notebook, whole_records())[name] == (IMAGES / name).read_bytes()


def test_the_readme_is_short_and_shows_every_image():
    text = PAGES[0].read_text(encoding="utf-8")
    assert len(text.split()) <= 1_000
    shown = {f"images/{path.name}" for path in IMAGES.iterdir()}
    assert set(re.findall(r"!\[[^]]{20,}\]\(([^)]+)\)", text)) == shown


def test_all_records_are_wanted():
    assert len(read_records()) == len(whole_records())


def test_ruff_finds_nothing():
    for command in (["check"], ["format", "--check"]):
        subprocess.run([sys.executable, "-m", "ruff", *command], check=True)


def test_the_repository_has_its_shape():
    git = shutil.which("git") or pytest.skip("git is not installed")
    command = {"args": [git, "ls-files"], "capture_output": True, "text": True}
    listed = subprocess.run(**command, check=False).stdout.splitlines()
    if not listed:
        pytest.skip("not a git checkout")
    top = {path.split("/")[0] for path in listed if not path.startswith(".")}
    assert top == {"README.md", "CODE9.ipynb", "requirements.txt", "images", "tests"}
    assert not [path for path in listed if path.endswith((".pyc", ".log"))]
