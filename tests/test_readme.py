"""The README in step with the stored notebook, the records and the files."""

import re

import matplotlib
import papermill
import pytest
from benchmark import SEEDS, read_records
from notebook import (
    NOTEBOOK,
    REPOSITORY,
    definitions,
    find_record,
    is_current,
    read_notebook,
)
from report import (
    IMAGES,
    README,
    SHOWN,
    figures,
    fill,
    generated_parts,
    grouped,
)


@pytest.fixture(scope="module")
def text():
    """The README."""
    return README.read_text(encoding="utf-8")


def test_the_generated_parts_are_those_of_the_records(text):
    assert fill(text, generated_parts(read_notebook(), read_records())) == text


def test_the_images_are_those_of_the_stored_records():
    """To the byte; another matplotlib than the stored run's may draw otherwise."""
    record = find_record(read_notebook())
    for name, content in figures(read_notebook(), read_records()).items():
        stored = (IMAGES / name).read_bytes()
        if name in SHOWN.values() or matplotlib.__version__ == version_of(record):
            assert stored == content, name


def version_of(record):
    """Return the matplotlib version that drew the stored run's figures."""
    return record["versions"]["matplotlib"]


def test_every_link_leads_to_a_file(text):
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", text)
    assert links
    for link in links:
        assert (REPOSITORY / link).exists(), link


def test_every_parameter_that_a_command_sets_exists(text):
    known = papermill.inspect_notebook(str(NOTEBOOK))
    commands = re.findall(r"papermill (.+)", text)
    used = [name for command in commands for name in re.findall(r" -p (\w+)", command)]
    assert used
    assert set(used) <= set(known)


def test_each_command_is_one_line(text):
    for name in ("run", "test"):
        block = text.split(f"<!-- command: {name} -->\n```sh\n")[1].split("\n```")[0]
        assert "\n" not in block


def test_the_log_shows_every_epoch_of_the_record(text):
    record = find_record(read_notebook())
    log = text.split("<!-- generated: log -->")[1].split("<!-- end: log -->")[0]
    rows = [line.split() for line in log.splitlines() if line.strip()[:1].isdigit()]
    assert len(rows) == record["epochs"]
    for row, accuracy in zip(rows, record["history"]["val_accuracy"], strict=True):
        assert row[5] == f"{accuracy:.2%}"


def test_records_are_of_the_notebook_as_it_stands():
    """Older ones are kept, but said to be so, and are in no table."""
    records = read_records()
    claims = grouped(records, "test")
    assert set(claims) == set(definitions()["RECIPES"])
    for name, group in claims.items():
        assert sorted(record["seed"] for record in group) == sorted(SEEDS), name
    if old := [record for record in records if not is_current(record)]:
        names = sorted({f"{r['name']}, seed {r['seed']}" for r in old})
        pytest.skip(f"of an older notebook: {'; '.join(names)}")
