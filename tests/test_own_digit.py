"""The notebook's way from a photograph to an image as MNIST has them."""

import keras
import numpy as np
import PIL.Image
import pytest
from runner import DATA, run_cell

COUNT = 60


@pytest.fixture(scope="module")
def read_digit():
    """The notebook's function from a path to an image (28, 28), light on black."""
    stored = keras.saving.load_model(DATA.with_name("CODE9.keras"))
    cells = {"model": stored, "figures": {}}
    for identifier in ("setup", "ink", "own"):
        run_cell(identifier, cells)
    return lambda path: cells["as_mnist"](cells["find_ink"](cells["read_grey"](path)))


@pytest.fixture(scope="module")
def stored_model():
    """The stored net."""
    return keras.saving.load_model(DATA.with_name("CODE9.keras"))


@pytest.fixture(scope="module")
def chosen(mnist):
    """Some test images, which the net was not trained on, and their labels."""
    index = np.random.default_rng(0).choice(10_000, COUNT, replace=False)
    return mnist["x_test"][index], mnist["y_test"][index]


def write(image, paper=0.95, dark=0.15, side=200, page=(360, 300)):
    """Return a page (h, w) from 0 to 1 with the digit written large on the paper."""
    large = PIL.Image.fromarray(image).resize(
        (side, side), PIL.Image.Resampling.BICUBIC
    )
    ink, top, left = np.zeros(page), (page[0] - side) // 2, (page[1] - side) // 3
    written = np.clip((np.asarray(large) / 255 - 0.25) / 0.5, 0, 1)
    ink[top : top + side, left : left + side] = written
    return paper * (1 - ink) + ink * np.minimum(dark, paper)


def lined(*axes, every, light):
    """Return a sheet of paper with lines two pixels wide."""
    paper = np.full((360, 300), 0.95)
    for axis in axes:
        for first in (10, 11):
            np.moveaxis(paper, axis, 0)[first::every] = light
    return paper


def shadow(page, random):
    """Return the page with a soft-edged half of it at 45 % of the light."""
    rows, columns = np.indices(page.shape)
    angle = random.uniform(0, 2 * np.pi)
    across = np.cos(angle) * (columns - 150) + np.sin(angle) * (rows - 180)
    return page * (0.45 + 0.55 / (1 + np.exp(-across / 12)))


def border(page, random):
    """Return the page with one to four sides as a scanner leaves them."""
    page, width, sides = page.copy(), random.integers(15, 25), random.integers(1, 5)
    for side in range(4):  # four quarter turns, after which it is upright again
        if side < sides:
            page[:width] = 0.08
        page = np.rot90(page)
    return page


def speck(page):
    """Return the page with a dark dot beside the digit."""
    rows, columns = np.indices(page.shape)
    return np.where((rows - 40) ** 2 + (columns - 250) ** 2 < 36, 0.15, page)


BLUE_ON_BEIGE = ((0.93, 0.1), (0.88, 0.15), (0.75, 0.5))
RULED, SQUARED = lined(0, every=32, light=0.7), lined(0, 1, every=20, light=0.65)
KINDS = {  # from an MNIST image and a source of random numbers to a picture
    "clean": lambda image, random: write(image),
    "inverted": lambda image, random: 1 - write(image),
    "mild shadow": lambda image, random: write(image) * np.linspace(0.7, 1, 300),
    "strong shadow": lambda image, random: shadow(write(image), random),
    "noise": lambda image, random: write(image) + random.normal(0, 0.08, (360, 300)),
    "pencil": lambda image, random: write(image, dark=0.6),
    "small on a page": lambda image, random: write(image, side=80, page=(480, 640)),
    "speck": lambda image, random: speck(write(image)),
    "blue on beige": lambda image, random: np.stack(
        [write(image, *shades) for shades in BLUE_ON_BEIGE], axis=-1
    ),
    "ruled": lambda image, random: write(image, RULED),
    "squared": lambda image, random: write(image, SQUARED),
    "dark border": lambda image, random: border(write(image), random),
}


def save(page, path):
    """Write the page, of values from 0 to 1, as a picture, and return its path."""
    PIL.Image.fromarray((255 * np.clip(page, 0, 1)).astype("uint8")).save(path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_the_stored_net_reads_photographs(
    kind, read_digit, stored_model, chosen, tmp_path
):
    images, labels = chosen
    random, path = np.random.default_rng(1), tmp_path / "picture.png"
    digits = [read_digit(save(KINDS[kind](image, random), path)) for image in images]
    logits = stored_model.predict(np.array(digits)[..., None], verbose=0)
    assert (logits.argmax(axis=1) == labels).mean() >= 0.95


def test_it_becomes_an_image_as_mnist_has_them(read_digit, chosen, tmp_path):
    digit = read_digit(save(write(chosen[0][0]), tmp_path / "picture.png"))
    assert (digit.shape, digit.dtype) == ((28, 28), np.float32)
    assert (digit.min(), digit.max()) == (0, 1)
    center = [(digit * axis).sum() / digit.sum() for axis in np.indices(digit.shape)]
    assert np.abs(np.array(center) - 13.5).max() <= 0.6


def test_transparency_size_and_rotation_do_not_matter(read_digit, chosen, tmp_path):
    page = PIL.Image.open(save(write(chosen[0][0]), tmp_path / "picture.png"))
    expected, clear = read_digit(tmp_path / "picture.png"), page.convert("RGBA")
    clear.putalpha(PIL.Image.eval(page, lambda value: 255 if value < 140 else 0))
    clear.save(tmp_path / "clear.png")
    page.resize((1500, 1800)).save(tmp_path / "large.png")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    page.rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif)
    for name in ("clear.png", "large.png", "turned.jpg"):
        assert np.abs(read_digit(tmp_path / name) - expected).mean() < 0.05, name


EMPTY = {
    "white": np.ones((360, 300)),
    "black": np.zeros((360, 300)),
    "noise": np.random.default_rng(0).uniform(0, 1, (360, 300)),
    "ruled": RULED,
    "squared": SQUARED,
    "shadow": shadow(np.full((360, 300), 0.95), np.random.default_rng(0)),
    "one pixel": np.ones((1, 1)),
}


@pytest.mark.parametrize("kind", EMPTY)
def test_a_picture_without_a_digit_is_refused(kind, read_digit, tmp_path):
    with pytest.raises(ValueError, match=r"No digit can be made out: write it"):
        read_digit(save(EMPTY[kind], tmp_path / "picture.png"))


@pytest.mark.parametrize(
    "content", [None, b"", b"no picture", b"\x89PNG\r\n\x1a\n" * 9]
)
def test_a_file_that_is_no_picture_is_refused(content, read_digit, tmp_path):
    if content is not None:
        (tmp_path / "picture.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"picture.png is no picture, name one"):
        read_digit(tmp_path / "picture.png")
