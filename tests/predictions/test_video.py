"""A video keeps its size, frame rate and number of frames, with PyAV and with OpenCV."""

import sys
from fractions import Fraction

import av
import numpy as np
import pytest

from jaxseg.errors import ConfigError, DataError, OutputError
from jaxseg.predictions import video


@pytest.fixture(params=["PyAV", "OpenCV"])
def library(request, monkeypatch):
    if request.param == "OpenCV":
        monkeypatch.setitem(sys.modules, "av", None)
    return request.param


def frame_of(number, hw):
    rows, columns = np.mgrid[: hw[0], : hw[1]]
    return np.stack([columns * 2, rows * 2, np.full(hw, 10 * number)], -1).astype(np.uint8)


def write(path, hw=(48, 64), rate=Fraction(25), count=20):
    with video.writing(path, hw, rate) as add:
        for number in range(count):
            add(frame_of(number, hw))


def write_and_fail(path):
    with video.writing(path, (48, 64), Fraction(25)) as add:
        add(frame_of(0, (48, 64)))
        raise DataError("halfway")


def read(path):
    with video.reading(path) as film:
        return film, list(film.frames)


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001), Fraction(15, 2)], ids=str)
def test_twenty_frames_are_twenty_frames_of_the_same_size_and_rate(library, tmp_path, rate):
    write(tmp_path / "a.mp4", rate=rate)
    film, frames = read(tmp_path / "a.mp4")
    assert float(film.rate) == pytest.approx(float(rate), rel=1e-5)
    assert (film.hw, film.count, len(frames)) == ((48, 64), 20, 20)
    for number, frame in enumerate(frames):
        difference = np.abs(frame.astype(int) - frame_of(number, (48, 64)))
        assert difference.mean() < 6  # colors have half the resolution
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_odd_sides_are_kept(tmp_path):
    write(tmp_path / "a.mp4", (47, 65))
    film, frames = read(tmp_path / "a.mp4")
    assert film.hw == frames[-1].shape[:2] == (47, 65)
    assert np.abs(frames[3].astype(int) - frame_of(3, (47, 65))).mean() < 6


def test_opencv_says_that_it_cannot_write_odd_sides(tmp_path, monkeypatch):
    write(tmp_path / "a.mp4", (47, 65), count=3)
    monkeypatch.setitem(sys.modules, "av", None)
    film, frames = read(tmp_path / "a.mp4")
    assert (film.hw, len(frames)) == ((47, 65), 3)
    with pytest.raises(ConfigError, match="65x47 pixels, because a side is odd; install PyAV"):
        write(tmp_path / "b.mp4", (47, 65))


def test_a_rotated_video_is_turned_upright(tmp_path, monkeypatch):
    """As telephones store a video that is held upright."""
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.set_display_rotation(90)
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(frame_of(number, (48, 64)), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    film, frames = read(tmp_path / "a.mp4")
    assert film.hw == (64, 48)
    monkeypatch.setitem(sys.modules, "av", None)
    _, expected = read(tmp_path / "a.mp4")  # OpenCV turns by itself
    assert np.abs(frames[1].astype(int) - expected[1]).mean() < 12


def test_what_is_no_video_is_named(library, tmp_path):
    write(tmp_path / "whole.mp4")
    content = (tmp_path / "whole.mp4").read_bytes()
    for name, damaged in {"cut": content[: len(content) // 2], "text": b"no video" * 99}.items():
        (tmp_path / f"{name}.mp4").write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{name}\.mp4 cannot be read as a video: .+"):
            read(tmp_path / f"{name}.mp4")
    with pytest.raises(DataError, match=r"nothing\.mp4 does not exist"):
        read(tmp_path / "nothing.mp4")
    (tmp_path / "notes.txt").write_text("no video\n" * 99)
    with pytest.raises(DataError, match="it is a text"):
        read(tmp_path / "notes.txt")
    (tmp_path / "photo.JPG").touch()
    with pytest.raises(DataError, match=r"photo\.JPG is an image, not a video"):
        read(tmp_path / "photo.JPG")


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="it has no pictures"):
        read(tmp_path / "sound.mp4")


def test_an_error_leaves_no_file_and_the_old_one_as_it_was(library, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"old")
    with pytest.raises(DataError, match="halfway"):
        write_and_fail(tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_where_it_cannot_be_written_is_named(library, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*a\.mp4"):
        write(tmp_path / "file" / "a.mp4")
    with pytest.raises(ConfigError, match=r"a\.avi: the file of a video ends with \.mp4"):
        write(tmp_path / "a.avi")
