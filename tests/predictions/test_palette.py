"""A file of class colors, and what is said of a wrong one."""

import json

import numpy as np
import pytest

from jaxseg.errors import ConfigError
from jaxseg.predictions.palette import read_palette

NAMES = ("road", "traffic: light", "car")
DEFAULT = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.uint8)


def read(tmp_path, text):
    (tmp_path / "colors").write_text(text)
    return read_palette(tmp_path / "colors", NAMES, DEFAULT).tolist()


@pytest.mark.parametrize(
    "text",
    [
        "#ff0000\n#00FF00\n\n  #0000ff\n",
        "car: #0000ff\nroad :#ff0000\ntraffic: light: #00ff00",
        json.dumps(["#ff0000", "#00ff00", "#0000ff"]),
        json.dumps({"car": "#0000ff", "road": "#ff0000", "traffic: light": "#00ff00"}),
    ],
)
def test_lines_or_json_with_or_without_names_are_one_palette(tmp_path, text):
    assert read(tmp_path, text) == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


def test_classes_that_are_not_named_keep_their_color(tmp_path):
    assert read(tmp_path, "car: #102030") == [[1, 2, 3], [4, 5, 6], [16, 32, 48]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("#ff0000\n#00ff00", "has 2 colors, but the model has 3 classes"),
        ("", "has 0 colors"),
        ("red\n#00ff00\n#0000ff", "'red' is neither #rrggbb nor NAME: #rrggbb"),
        ("#ff00\n#00ff00\n#0000ff", "'#ff00' is no color"),
        ("tram: #ff0000", "no class 'tram'; its classes are\n  road"),
        ("car: #ff0000\ncar: #ff0001", "'car' is listed twice"),
        ("car: #ff0000\n#ff0001", "some colors have a name"),
        ("[1, 2, 3]", "'1' is no color"),
        ('{"car": ', "no valid JSON"),
    ],
)
def test_a_wrong_file_is_refused_with_the_reason(tmp_path, text, message):
    with pytest.raises(ConfigError, match="--palette") as raised:
        read(tmp_path, text)
    assert message in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.txt cannot be read"):
        read_palette(tmp_path / "nothing.txt", NAMES, DEFAULT)
