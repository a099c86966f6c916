"""The README in step with the stored notebook, the records and the files."""

import json
import re

import matplotlib
import papermill
import PIL.Image
import pytest
from benchmark import ABLATION_SEEDS, OTHER_SEEDS, SEEDS, read_records
from report import (
    IMAGES,
    PAGES,
    SHOWN,
    SPEED,
    claimed,
    figures,
    fill,
    fill_notebook,
    generated_parts,
    held_out,
)
from runner import NOTEBOOK, definitions, fingerprint, is_current, read_notebook


@pytest.fixture(scope="module")
def parts():
    """What the generated parts ought to be."""
    return generated_parts(read_notebook(), read_records())


@pytest.fixture(scope="module", params=PAGES, ids=lambda page: str(page.parent.name))
def page(request):
    """A page of text that has generated parts."""
    return request.param


def test_the_generated_parts_are_those_of_the_records(page, parts):
    text = page.read_text(encoding="utf-8")
    assert "<!-- generated:" in text
    assert fill(text, parts) == text


def test_the_numbers_in_the_notebook_are_those_of_the_records(parts):
    assert fill_notebook(read_notebook(), parts) == read_notebook()


def test_no_marker_begins_a_line(page):
    """Markdown would take the line for HTML, and what follows for a new paragraph."""
    texts = [c.source for c in read_notebook().cells if c.cell_type == "markdown"]
    for text in (page.read_text(encoding="utf-8"), *texts):
        assert not re.search(r"^ *<!-- n:", text, re.MULTILINE)


def test_a_number_that_is_changed_by_hand_is_seen(parts):
    text = "<!-- n: assignment mean -->99.99 %<!-- end -->"
    assert fill(text, parts) != text
    with pytest.raises(KeyError, match="no such part"):
        fill("<!-- n: no such part -->1<!-- end -->", parts)


def test_the_images_are_those_of_the_stored_records():
    """To the byte; another matplotlib than the one that drew it may draw otherwise."""
    for name, content in figures(read_notebook(), read_records()).items():
        drawn_by = PIL.Image.open(IMAGES / name).info.get("Software")
        if name in SHOWN.values() or drawn_by == f"matplotlib {matplotlib.__version__}":
            assert (IMAGES / name).read_bytes() == content, name


def test_every_link_leads_to_a_file(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert (page.parent / link).exists(), link


def test_every_parameter_that_a_command_sets_exists(page):
    known = papermill.inspect_notebook(str(NOTEBOOK))
    used = re.findall(r" -p (\w+) \w", page.read_text(encoding="utf-8"))
    assert set(used) <= set(known)


def test_the_records_are_of_the_notebook_as_it_stands():
    records = read_records()
    assert all(is_current(record) for record in records)
    for seeds in (SEEDS, OTHER_SEEDS):
        groups = claimed(records, seeds)
        assert set(groups) == set(definitions()["RECIPES"])
        for name, group in groups.items():
            assert sorted(record["seed"] for record in group) == list(seeds), name
    for name, runs in held_out(records).items():
        assert sorted(runs) == list(ABLATION_SEEDS), name
    timed = json.loads(SPEED.read_text(encoding="utf-8"))
    assert timed["fingerprint"] == fingerprint()
