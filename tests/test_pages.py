"""The stored notebook, both READMEs and the records: in step with one another."""

import contextlib
import hashlib
import io
import math
import re
import shutil
import subprocess
import sys

import keras
import matplotlib
import nbformat
import numpy as np
import papermill
import peers
import PIL.Image
import pytest
import report
from benchmark import read_records, whole_records
from notebook import (
    DATA,
    NOTEBOOK,
    find_record,
    read_notebook,
    run_cell,
    settings_of,
)
from report import IMAGES, PAGES, SHOWN, figures

# Published at github.com/cleanlab/label-errors, judged wrong by people.
MISLABELED = [947, 1621, 1901, 2130, 2462, 2597, 2654, 3520, 3558, 5937]
MISLABELED += [6651, 6783, 8527, 9679, 9729]


@pytest.fixture(scope="module")
def notebook():
    """The stored notebook."""
    return read_notebook()


def stored(notebook):
    """Return the notebook with all records: what the pages are made from."""
    return notebook, whole_records(), peers.whole_lines()


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
    expected = {"seed": "0", "epochs": "20", "holdout": "0", "overrides": "{}"}
    expected |= {"data_path": '""', "output_dir": '""'}
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
    rules = code_cells["rules"].outputs[0].text
    assert rules.count("kept: ") == 4 and "BROKEN" not in rules


def test_the_stored_run_is_the_record_of_seed_0(notebook):
    """Made by other versions, perhaps, but on a like machine: to the last digit."""
    run, records = report.stored_run(notebook), whole_records()
    stored = next(r for r in records if r["name"] == "20 epochs" and r["seed"] == 0)
    assert run["sha256"] == stored["sha256"]
    assert run["accuracy"] == pytest.approx(stored["accuracy"], abs=1e-9)
    assert run["history"]["val_accuracy"] == pytest.approx(stored["log"], abs=1e-9)


def test_what_is_printed_and_drawn_is_computed_as_it_says(mnist, monkeypatch):
    """Wilson's interval by its formula; errors and curves by the stored network."""
    record = find_record(read_notebook())
    cells = {"record": record, "display": lambda *_, **__: None}
    cells |= {"run_images": mnist["x_test"], "run_labels": mnist["y_test"]}
    network = keras.saving.load_model(DATA.with_name("CODE9.keras"))
    x_test = mnist["x_test"][..., None] / np.float32(255)
    cells["logits"] = logits = network.predict(x_test, batch_size=1_000, verbose=0)
    cells |= {"images": mnist["x_train"], "labels": mnist["y_train"]}
    for identifier in ("setup", "digits"):
        run_cell(identifier, cells)
    shown = []
    cells["show"] = lambda figure, alt: shown.append(figure)
    cells["show_images"] = lambda *given, **look: shown.append(given)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        for identifier in ("curves", "evaluate", "wrong"):
            run_cell(identifier, cells)
    curves, errors = shown
    for line, key in zip(
        curves.axes[0].lines, ("val_accuracy", "accuracy"), strict=False
    ):
        share = 100 * (1 - np.array(record["history"][key]))
        assert line.get_ydata() == pytest.approx(share)
    n, p, z = 10_000, record["accuracy"], 1.959964
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    right = round(n * p)
    assert out.getvalue().splitlines() == [
        f"model.evaluate on the test images: [{record['loss']:.4f}, {p:.4f}]",
        f"{right:,} of 10,000 right: {p:.2%}, 99.4% are required",
        f"95% interval: {middle - half:.2%} to {middle + half:.2%}",
    ]
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances, expected, stars = exponents / exponents.sum(axis=1, keepdims=True), [], 0
    wrong = [i for i in range(n) if logits[i].argmax() != mnist["y_test"][i]]
    for index in wrong:
        star = "*" if index in MISLABELED else ""
        stars += bool(star)
        digit = f"{mnist['y_test'][index]}{star} → {logits[index].argmax()}"
        expected.append(f"{digit}\n{chances[index].max():.0%}")
    assert errors[1] == expected
    assert np.array_equal(errors[0], mnist["x_test"][wrong[:40]])
    assert errors[2].startswith(f"{len(wrong)} errors, {stars} of them starred")


def test_the_photographs_add_up():
    lines = (report.RECORDS / "photographs.tsv").read_text("utf-8").splitlines()[1:]
    rows = {line.split("\t")[0]: list(map(int, line.split("\t")[1:])) for line in lines}
    for pictures, *counts in rows.values():
        assert pictures == sum(counts)
    total = rows.pop("all but the MNIST images")
    for other in ("MNIST image as a picture", "several digits", "no digit"):
        rows.pop(other)
    assert total == [sum(column) for column in zip(*rows.values(), strict=True)]


def test_the_repository_holds_the_published_mnist(mnist):
    """Each array as its IDX file: the MD5 sum is in the README of the data."""
    published = DATA.with_name("README.md").read_text(encoding="utf-8")
    for array in mnist.values():
        header = np.array([0x800 + array.ndim, *array.shape], ">i4").tobytes()
        assert hashlib.md5(header + array.tobytes()).hexdigest() in published


def test_the_markers_stand_in_pairs(notebook):
    """What is between them, a test of the tools writes again."""
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    texts += [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    named = set()
    for text in texts:
        starts = re.findall(r"<!-- generated: (.+) -->\n", text)
        assert starts == re.findall(r"\n<!-- end: (.+) -->", text)
        named |= set(starts)
    assert named == set(report.generated_parts(*stored(notebook)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_pages_name_what_there_is(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
        assert (page.parent / link).exists(), link
    for target, anchor in re.findall(r"\]\(([^):\s]*)#([^)\s]+)\)", text):
        headings = re.findall(
            r"(?m)^#+ (.*)$",
            (page.parent / target).read_text("utf-8") if target else text,
        )
        assert anchor in [
            re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings
        ]
    known = set(papermill.inspect_notebook(str(NOTEBOOK)))
    assert set(re.findall(r" -p (\w+) \w", text)) <= known


@pytest.mark.parametrize("name", ["frontier.png", "ablation.png", *SHOWN.values()])
def test_the_images_are_those_of_the_stored_records(name, notebook):
    drawn_by = PIL.Image.open(IMAGES / name).info.get("Software", "the notebook")
    if drawn_by.startswith("Matplotlib") and matplotlib.__version__ not in drawn_by:
        pytest.skip(f"{name} was drawn by {drawn_by}, another may draw otherwise.")
    assert figures(*stored(notebook))[name] == (IMAGES / name).read_bytes()


def test_the_readme_is_short_and_shows_every_image():
    text = PAGES[0].read_text(encoding="utf-8")
    assert len(text.split()) <= 1_000
    shown = {f"images/{path.name}" for path in IMAGES.iterdir()}
    assert set(re.findall(r"!\[[^]]{20,}\]\(([^)]+)\)", text)) == shown


def test_the_numbers_in_the_prose_are_those_of_the_code(notebook):
    """The settings, the least loss with smoothed labels, and the kernels' sizes."""
    readme = " ".join(PAGES[0].read_text(encoding="utf-8").split())
    told = " ".join(" ".join(cell.source.split()) for cell in notebook.cells)
    used = settings_of()
    few, many = used["filters"][:2]
    smooth, label = used["label_smoothing"], np.full(10, used["label_smoothing"] / 10)
    label[0] += 1 - smooth
    least = f"{-(label * np.log(label)).sum():.2f}"
    for text in (
        f"**Label smoothing ({smooth}):**",
        f"falls linearly from {used['learning_rate']} to zero",
        f"rotation by up to {used['rotation']:g}°, stretch and shear by up to "
        f"{used['stretch']:.0%}, shift by up to one pixel",
        f"With smoothed labels the minimum loss is {least}.",
    ):
        assert text in readme, text
    image = keras.Input((28, 28, few))
    separable, standard = (
        keras.Model(image, kind(many, 3, use_bias=False)(image)).count_params()
        for kind in (keras.layers.SeparableConv2D, keras.layers.Conv2D)
    )
    for text in (
        f"a probability of {label[0]:g}, each other one {label[1]:g}",
        f"The loss cannot fall below {least} then.",
        f"{few}·9 + {few}·{many} = {separable:,} parameters, where a standard "
        f"convolution takes {few}·9·{many} = {standard:,}.",
    ):
        assert text in told, text


def test_all_records_are_wanted():
    assert len(read_records()) == len(whole_records())
    assert len(peers.read_lines()) == len(peers.whole_lines())


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
