"""The notebook's way from a photograph to an image as MNIST has them."""

import keras
import numpy as np
import PIL.Image
import pytest
from runner import DATA, run_cell
from scipy import ndimage

COUNT, PAGE = 60, (360, 300)


@pytest.fixture(scope="module")
def model():
    """The stored net."""
    return keras.saving.load_model(DATA.with_name("CODE9.keras"))


@pytest.fixture(scope="module")
def read_digit(model):
    """The notebook's function from a path to an image (28, 28), light on black."""
    cells = {"averaged": model, "figures": {}}
    for identifier in ("setup", "grey", "ink", "own"):
        run_cell(identifier, cells)
    return lambda path: cells["as_mnist"](cells["find_ink"](cells["read_grey"](path)))


@pytest.fixture(scope="module")
def chosen(mnist):
    """Some test images, which the net was not trained on, and their labels."""
    index = np.random.default_rng(0).choice(10_000, COUNT, replace=False)
    return mnist["x_test"][index], mnist["y_test"][index]


def write(image, random, paper=0.95, dark=0.15, side=200):
    """Return a page (h, w) from 0 to 1 with the digit somewhere on the paper."""
    large = ndimage.gaussian_filter(ndimage.zoom(image / 255, side / 28), side / 80)
    ink, space = np.zeros(PAGE), (np.array(PAGE) - side) // 2
    top, left = random.integers(space // 2, space + space // 2)
    ink[top : top + side, left : left + side] = np.clip(5 * large - 1.75, 0, 1)
    return paper * (1 - ink) + ink * np.minimum(dark, paper)


def lined(axes, every, light, slope=0.0):
    """Return a sheet of paper with lines two pixels wide."""
    paper, grid = np.full(PAGE, 0.95), np.indices(PAGE)
    for axis in axes:
        paper[(grid[axis] + (-1) ** axis * slope * grid[1 - axis]) % every < 2] = light
    return paper


def shadow(random):
    """Return the light: a soft-edged half of the page has 45 % of it."""
    angle = random.uniform(0, 2 * np.pi)
    down, right = (np.indices(PAGE).T - (180, 150)).T
    across = np.cos(angle) * right + np.sin(angle) * down
    return 0.45 + 0.55 / (1 + np.exp(-across / 12))


def border(page, random):
    """Return the page with one to four sides as a scanner leaves them."""
    width, sides = random.integers(15, 25), random.permutation(4)
    for side in sides[: random.integers(1, 5)]:
        np.rot90(page, side)[:width] = 0.08  # a view, so the page itself changes
    return page


RULED, SQUARED = lined([0], 32, 0.7), lined([0, 1], 20, 0.65)
DARK_RULED, TILTED = lined([0], 40, 0.35, 0.04), lined([0, 1], 20, 0.65, 0.04)
SPECK = np.where(np.hypot(*(np.indices(PAGE).T - (40, 280)).T) < 6, 0.15, 1)
MILD, BEIGE, BLUE = np.linspace(0.7, 1, 300), (0.8, 0.75, 0.3), (0.1, 0.12, 0.45)
KINDS = {  # from an MNIST image and a source of random numbers to a picture
    "clean": write,
    "inverted": lambda image, random: 1 - write(image, random),
    "mild shadow": lambda image, random: write(image, random) * MILD,
    "strong shadow": lambda image, random: write(image, random) * shadow(random),
    "noise": lambda image, random: write(image, random) + random.normal(0, 0.08, PAGE),
    "pencil": lambda image, random: write(image, random, dark=0.6),
    "small": lambda image, random: write(image, random, side=60),
    "speck": lambda image, random: write(image, random) * SPECK,
    "blue": lambda image, random: write(image, random)[..., None] * BEIGE + BLUE,
    "ruled": lambda image, random: write(image, random, RULED),
    "dark ruled": lambda image, random: write(image, random, DARK_RULED),
    "squared": lambda image, random: write(image, random, SQUARED),
    "tilted": lambda image, random: write(image, random, TILTED) * shadow(random),
    "dark border": lambda image, random: border(write(image, random), random),
}


def save(page, path):
    """Write the page, of values from 0 to 1, as a picture, and return its path."""
    PIL.Image.fromarray((255 * np.clip(page, 0, 1)).astype("uint8")).save(path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_the_stored_net_reads_it(kind, read_digit, model, chosen, tmp_path):
    images, labels = chosen
    random, path = np.random.default_rng(1), tmp_path / "picture.png"
    digits = [read_digit(save(KINDS[kind](image, random), path)) for image in images]
    logits = model.predict(np.array(digits)[..., None], verbose=0)
    assert (logits.argmax(axis=1) == labels).mean() >= 0.95


def test_transparency_size_and_rotation_do_not_matter(read_digit, chosen, tmp_path):
    written = write(chosen[0][0], np.random.default_rng(0))
    page = PIL.Image.open(save(written, tmp_path / "page.png"))
    expected, exif = read_digit(tmp_path / "page.png"), PIL.Image.Exif()
    assert (expected.shape, expected.dtype) == ((28, 28), np.float32)
    assert np.abs(np.array(ndimage.center_of_mass(expected)) - 13.5).max() <= 0.6
    for name in ("black", "white"):
        clear = PIL.Image.new("RGBA", page.size, name)
        clear.putalpha(PIL.Image.eval(page, lambda value: 255 if value < 140 else 0))
        clear.save(tmp_path / f"{name}.png")
    page.resize((3000, 3600)).save(tmp_path / "large.jpg")
    exif[0x0112] = 6  # to be turned a quarter clockwise
    page.rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif)
    for name in ("black.png", "white.png", "large.jpg", "turned.jpg"):
        assert np.abs(read_digit(tmp_path / name) - expected).mean() < 0.05, name


EMPTY = [np.full(PAGE, grey) for grey in (0, 0.5, 1)]
EMPTY += [np.ones((1, 1)), RULED, SQUARED, DARK_RULED, TILTED]
EMPTY += [np.random.default_rng(0).uniform(0, 1, PAGE)]
EMPTY += [0.95 * shadow(np.random.default_rng(seed)) for seed in range(5)]
BROKEN = [None, b"", b"no picture", b"\x89PNG\r\n\x1a\n" * 9]


@pytest.mark.parametrize("content", [*EMPTY, *BROKEN])
def test_what_shows_no_digit_is_refused(content, read_digit, tmp_path):
    path, message = tmp_path / "picture.png", r"picture.png is no picture, name one"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        save(content, path)
        message = r"No digit can be made out: write it larger or darker"
    with pytest.raises(ValueError, match=message):
        read_digit(path)
