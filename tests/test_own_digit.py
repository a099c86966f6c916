"""The notebook's way from a photograph to an image as MNIST has them."""

import io
import struct
import sys
from types import SimpleNamespace

import keras
import numpy as np
import PIL.Image
import pytest
from notebook import DATA, read_notebook, run_cell
from scipy import ndimage

COUNT, PAGE = 8, (360, 300)
NONE_FOUND = "No single digit is found: write one, large, on plain paper"


@pytest.fixture(scope="module")
def cells(mnist):
    """The section's functions, the stored net, and an image to fall back on."""
    model = keras.saving.load_model(DATA.with_name("CODE9.keras"))
    space = {"run_images": mnist["x_test"], "model": model}
    space |= {"images": mnist["x_train"], "labels": mnist["y_train"]}
    for identifier in ("setup", "settings", "digits", "ink", "read"):
        run_cell(identifier, space)
    return space


def write(image, random, side=200, dark=0.15, paper=0.95, change=lambda ink: ink):  # noqa: PLR0913, PLR0917
    """Return a page (h, w) from 0 to 1 with the digit somewhere on the paper."""
    large = ndimage.gaussian_filter(ndimage.zoom(image / 255, side / 28), side / 80)
    ink, space = np.zeros(PAGE), (np.array(PAGE) - side) // 2
    top, left = random.integers(space // 2, space + space // 2 + 1)
    ink[top : top + side, left : left + side] = np.clip(5 * large - 1.75, 0, 1)
    return paper + change(ink) * (np.minimum(dark, paper) - paper)


def thin(ink):
    """Return the middle of the strokes, two or three pixels wide."""
    depth = ndimage.distance_transform_edt(ink > 0.5)
    ridge = (depth > 1) & (depth >= ndimage.maximum_filter(depth, 5) - 1)
    closed = ndimage.binary_closing(ridge, np.ones((13, 13)))
    return ndimage.gaussian_filter(closed.astype(float), 0.7)


def edge(image, random):
    """Return a large digit that touches the left and the lower edge."""
    page = write(image, random, side=280)
    rows, columns = np.nonzero(page < 0.4)
    return page[: rows.max(), columns.min() :]


def watermark(image, random):
    """Return a digit in pencil, and a black stamp in the corner."""
    page = write(image, random, dark=0.6)
    page[335:355, 210:290] = 0.05
    return page


def lined(axes, every, light, slope):
    """Return a sheet of paper with lines two pixels wide."""
    paper, grid = np.full(PAGE, 0.95), np.indices(PAGE)
    for axis in axes:
        paper[(grid[axis] + (-1) ** axis * slope * grid[1 - axis]) % every < 2] = light
    return paper


def shadow(random):
    """Return the light: a soft-edged half of the page has 45% of it."""
    angle = random.uniform(0, 2 * np.pi)
    down, right = (np.indices(PAGE).T - (180, 150)).T
    across = np.cos(angle) * right + np.sin(angle) * down
    return 0.45 + 0.55 / (1 + np.exp(-across / 12))


RULED, TILTED = lined([0], 32, 0.5, 0), lined([0], 40, 0.35, 0.04)
UPRIGHT = lined([1], 32, 0.2, 0)
SQUARED = lined([0, 1], 20, 0.65, 0.04)
KINDS = {  # from an MNIST image and a source of random numbers to a picture
    "dark on light": write,
    "light on dark": lambda *given: 1 - write(*given),
    "thin": lambda *given: write(*given, dark=0.5, change=thin),
    "large, at the edge": edge,
    "watermark": watermark,
    "30 pixels": lambda *given: (
        write(*given, change=thin)[30:330].reshape(30, 10, 30, 10).mean(axis=(1, 3))
    ),
    "tilted": lambda *given: write(*given, paper=TILTED),
    "upright": lambda *given: write(*given, paper=UPRIGHT),
    "squared": lambda *given: write(*given, paper=SQUARED),
    "shadow": lambda image, random: write(image, random) * shadow(random),
}


def save(page, form="PNG", **options):
    """Return a file of the page, whose values are from 0 to 1, or of the picture."""
    if isinstance(page, np.ndarray):
        page = PIL.Image.fromarray((255 * np.clip(page, 0, 1)).astype("uint8"))
    page.save(file := io.BytesIO(), form, **options)
    return file


@pytest.mark.parametrize("kind", KINDS)
def test_the_stored_net_reads_it(kind, cells, mnist):
    """All but one are read, of test images that the net was not trained on."""
    index = np.random.default_rng(0).choice(10_000, COUNT, replace=False)
    random, labels = np.random.default_rng(1), mnist["y_test"][index]
    pages = [KINDS[kind](image, random) for image in mnist["x_test"][index]]
    digits = np.array([cells["read_digit"](save(page)) for page in pages])
    assert (digits.shape, digits.dtype) == ((COUNT, 28, 28), np.float32)
    assert (digits.min(), digits.max()) == (0, 1)
    logits = cells["model"].predict(digits[..., None], verbose=0)
    assert (logits.argmax(axis=1) == labels).sum() >= COUNT - 1


def odd_exif():
    """Return EXIF data that Pillow cannot write: resolution -1/0, orientation 6."""
    entries = struct.pack("<HHHII", 2, 0x0112, 3, 1, 6)
    entries += struct.pack("<HHIIIii", 0x011A, 10, 1, 38, 0, -1, 0)
    return b"Exif\0\0II*\0\x08\0\0\0" + entries


def formats(page):
    """Return files of the same picture by the name of their format."""
    exif, deep = PIL.Image.Exif(), np.array(page).astype("uint16")
    exif[0x0112] = 6  # to be turned a quarter clockwise
    clear = PIL.Image.new("RGBA", page.size, "black")
    clear.putalpha(PIL.Image.eval(page, lambda value: 255 if value < 140 else 0))
    return {
        "rotation": save(page.rotate(90, expand=True), "JPEG", exif=exif),
        "odd EXIF": save(page.rotate(90, expand=True), "JPEG", exif=odd_exif()),
        "large": save(page.resize((3000, 3600)), "JPEG"),
        "palette": save(page.convert("P"), "GIF"),
        "CMYK": save(page.convert("CMYK"), "JPEG"),
        "12 bits": save(PIL.Image.fromarray(deep << 4)),
        "16 bits": save(PIL.Image.fromarray(deep << 8), "TIFF"),
        "transparent": save(clear),
    }


@pytest.mark.parametrize("name", formats(PIL.Image.new("L", (9, 9))))
def test_the_format_does_not_matter(name, cells, mnist):
    file = save(write(mnist["x_test"][0], np.random.default_rng(0)))
    digit = cells["read_digit"](formats(PIL.Image.open(file))[name])
    assert np.abs(digit - cells["read_digit"](file)).mean() < 0.02
    assert np.abs(np.array(ndimage.center_of_mass(digit)) - 13.5).max() <= 0.6


EMPTY = [np.full(PAGE, gray) for gray in (0, 0.5, 1)]
EMPTY += [RULED, SQUARED, np.ones((1, 1)), np.full((3, 4000), 0.5)]
EMPTY += [np.pad(np.full((99, 40), 0.87), 99, constant_values=0.9)]  # a pale stain
EMPTY += [np.random.default_rng(0).uniform(0, 1, PAGE)]
BROKEN = {
    "identify": io.BytesIO(b"\0\0\0\x18ftypheic" + bytes(99)),  # an iPhone's HEIC
    "exceeds limit": save(PIL.Image.new("1", (20_000, 12_000))),
    "truncated": io.BytesIO(save(RULED).getvalue()[:300]),
    "No such file": "no file",
}


@pytest.mark.parametrize("page", EMPTY)
def test_what_shows_no_digit_is_refused(page, cells):
    with pytest.raises(ValueError, match=NONE_FOUND):
        cells["read_digit"](save(page))


def test_several_digits_are_refused(cells, mnist):
    digits = np.pad(np.hstack(mnist["x_test"][:2]), 4).repeat(6, 0).repeat(6, 1)
    with pytest.raises(ValueError, match=NONE_FOUND):
        cells["read_digit"](save(1 - digits / 255))


@pytest.mark.parametrize("reason", BROKEN)
def test_what_is_no_picture_is_refused(reason, cells):
    with pytest.raises(ValueError, match=f"ordinary photo saved as JPEG: .*{reason}"):
        cells["read_digit"](BROKEN[reason])


def test_the_cell_shows_each_step_and_may_not_be_sure(cells, monkeypatch):
    run_cell("own", cells)
    titles = [axis.get_title() for axis in cells["axes"]]
    assert titles == ["picture", "ink", "as MNIST", "answer: 7"]
    unsure = SimpleNamespace(predict=lambda digits, verbose: np.zeros((1, 10)))
    monkeypatch.setitem(cells, "model", unsure)
    run_cell("own", cells)
    assert cells["answer"] == "not sure"


def test_a_cancelled_upload_says_so(cells, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab.files", SimpleNamespace(upload=dict))
    edited = read_notebook(edits={'photograph = ""': 'photograph = "upload"'})
    with pytest.raises(ValueError, match=r"saved as JPEG: .*cancelled upload"):
        run_cell("own", cells, edited)
