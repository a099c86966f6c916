"""The notebook's way from a photograph to an image as MNIST has them."""

import keras
import numpy as np
import PIL.Image
import pytest
from notebook import DATA, REPOSITORY, run_cells, run_definitions

DIGIT = REPOSITORY / "images" / "digit.png"


@pytest.fixture(scope="module")
def cells():
    """The notebook's functions for pictures of one's own."""
    namespace = run_cells("plumbing")
    run_definitions("own", namespace)
    return namespace


@pytest.fixture
def convert(cells, tmp_path):
    """A function that saves a picture and returns what becomes of it."""

    def converted(picture):
        picture.save(tmp_path / "picture.png")
        return cells["as_mnist"](cells["read_ink"](tmp_path / "picture.png"))

    return converted


def test_it_becomes_an_image_as_mnist_has_them(cells):
    digit = cells["as_mnist"](cells["read_ink"](DIGIT))
    assert (digit.shape, digit.dtype) == ((28, 28), np.float32)
    assert (digit.min(), digit.max()) == (0, 1)
    rows, columns = np.nonzero(digit)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    grid = np.indices(digit.shape)
    center = [(digit * axis).sum() / digit.sum() for axis in grid]
    assert np.abs(np.array(center) - 13.5).max() <= 0.5


def test_the_stored_net_reads_it(cells):
    network = keras.saving.load_model(DATA.with_name("CODE9.keras"))
    digit = cells["as_mnist"](cells["read_ink"](DIGIT))
    assert network.predict(digit[None, ..., None], verbose=0).argmax() == 4


def test_color_mode_size_and_contrast_do_not_matter(convert):
    given = PIL.Image.open(DIGIT).convert("RGB")
    expected = convert(given)
    dark = PIL.Image.eval(given, lambda value: 255 - value)
    grey = given.convert("L")
    faint = PIL.Image.eval(grey, lambda value: 100 + value // 3)
    large = given.resize((given.width * 3, given.height * 3))
    clear = given.convert("RGBA")
    clear.putalpha(PIL.Image.eval(grey, lambda value: 255 if value < 140 else 0))
    for picture in (dark, grey, faint, large, clear, given.convert("P")):
        assert np.abs(convert(picture) - expected).mean() < 0.03


def test_a_thin_line_and_a_wide_picture_fit(convert):
    line = np.full((300, 60), 255, "uint8")
    line[20:280, 28:31] = 0
    for picture in (line, line.T):
        digit = convert(PIL.Image.fromarray(picture))
        assert digit.max() == 1
        assert 18 <= np.count_nonzero(digit.max(axis=1 if picture is line else 0)) <= 20


@pytest.mark.parametrize("value", [0, 128, 255])
def test_an_empty_picture_is_refused(convert, value):
    with pytest.raises(ValueError, match=r"is empty: there is no digit"):
        convert(PIL.Image.new("L", (50, 40), value))


@pytest.mark.parametrize("content", [b"", b"no picture", DIGIT.read_bytes()[:900]])
def test_a_file_that_is_no_picture_is_refused(cells, tmp_path, content):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is no picture that Pillow reads"):
        cells["read_ink"](path)


def test_a_file_that_is_not_there_is_refused(cells):
    with pytest.raises(ValueError, match=r"is no file: name a photograph"):
        cells["read_ink"]("missing.png")
