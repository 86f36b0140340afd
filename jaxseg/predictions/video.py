"""Reads and writes video files: with PyAV, or with OpenCV where PyAV is missing.

Sound is not copied. Videos of a variable frame rate get their mean rate. The pixels of a frame are
RGB, and frames that are stored rotated are turned upright.
"""

import contextlib
import itertools
import pathlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from jaxseg.atomic_files import replacing
from jaxseg.data import picture_files
from jaxseg.errors import ConfigError, DataError

SUFFIX = ".mp4"
QUALITY = "18"  # of H.264: from 0, lossless, to 51; 18 looks like the original
BT709 = 1  # the number of this color space in a video's header
TEXT = "ansi"  # the codec by which FFmpeg shows a text file as a film of a terminal
WriteFrame = Callable[[UInt8[np.ndarray, "h w 3"]], None]


class Video(NamedTuple):
    """A video that is being read.

    Attributes:
      hw: height and width of its frames.
      rate: frames per second.
      count: number of frames by its header, or 0 if it does not say.
      frames: its frames, in order.
    """

    hw: tuple[int, int]
    rate: Fraction
    count: int
    frames: Iterator[UInt8[np.ndarray, "_ _ 3"]]


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[Video]:
    """Opens a video.

    Raises:
      DataError: if it does not exist, or is no video that can be decoded. While frames are read: if
        one is damaged.
    """
    if not path.is_file():
        raise DataError(f"{path} {'is not a regular file' if path.exists() else 'does not exist'}")
    if path.suffix.lower() in picture_files.SUFFIXES:
        raise DataError(f"{path} is an image, not a video; give it without --video")
    with _read_with_av(path) if _av() else _read_with_opencv(path) as (rate, count, frames):
        first = next(frames, None)
        if first is None:
            raise _unreadable(path, "it has no frames")
        if not rate or rate < 0:
            raise _unreadable(path, "it does not say its frame rate")
        yield Video(first.shape[:2], rate, count, itertools.chain([first], frames))


@contextlib.contextmanager
def writing(path: pathlib.Path, hw: tuple[int, int], rate: Fraction) -> Iterator[WriteFrame]:
    """Yields a function that adds a frame to a new video. The file is there when the last one is.

    Sides that are odd are kept: H.264 then stores colors at full resolution (4:4:4).

    Args:
      path: the file, which ends with .mp4.
      hw: height and width of the frames.
      rate: frames per second.

    Raises:
      ConfigError: for another suffix; or for odd sides without PyAV.
      OutputError: if the file cannot be written.
    """
    if path.suffix.lower() != SUFFIX:
        raise ConfigError(f"--out {path}: the file of a video ends with {SUFFIX}")
    if not _av() and any(side % 2 for side in hw):
        raise ConfigError(
            f"OpenCV cannot write videos of {hw[1]}x{hw[0]} pixels, because a side is odd; install"
            " PyAV: pip install av"
        )
    write_with = _write_with_av if _av() else _write_with_opencv
    with replacing(path) as partial, write_with(partial, hw, rate) as write:
        yield write


def _av() -> Any:
    """Returns PyAV, or None if it is not installed."""
    try:
        import av
    except ImportError:
        return None
    return av


@contextlib.contextmanager
def _read_with_av(path):
    av = _av()
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    with container:
        if not container.streams.video:
            raise _unreadable(path, "it has no pictures")
        stream = container.streams.video[0]
        if stream.codec_context.name == TEXT:
            raise _unreadable(path, "it is a text")
        stream.thread_type = "AUTO"

        def frames():
            size, count = {}, 0
            try:
                for frame in container.decode(stream):
                    size = size or {"width": frame.width, "height": frame.height}
                    pixels = frame.to_ndarray(format="rgb24", **size)
                    yield np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
                    count += 1
            except av.FFmpegError as error:
                raise _unreadable(path, f"after {count} frames: {error.strerror}") from error

        yield stream.average_rate or stream.guessed_rate, stream.frames, frames()


@contextlib.contextmanager
def _write_with_av(partial, hw, rate):
    av = _av()
    try:
        with av.open(str(partial), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=rate, options={"crf": QUALITY})
            stream.height, stream.width = hw
            stream.pix_fmt = "yuv444p" if any(side % 2 for side in hw) else "yuv420p"
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = BT709

            def write(pixels):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                container.mux(
                    stream.encode(frame.reformat(format=stream.pix_fmt, dst_colorspace=BT709))
                )

            yield write
            container.mux(stream.encode())
    except av.FFmpegError as error:
        raise OSError(error.errno, error.strerror) from error  # `replacing` says what to do


@contextlib.contextmanager
def _read_with_opencv(path):
    film = cv2.VideoCapture(str(path))
    try:
        if not film.isOpened():
            raise _unreadable(path, "OpenCV cannot open it")
        if int(film.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little") == TEXT.encode():
            raise _unreadable(path, "it is a text")

        def frames():
            while True:
                found, pixels = film.read()
                if not found:
                    return
                yield np.ascontiguousarray(pixels[..., ::-1])

        # 29.97 of a header is 30000 / 1001.
        rate = Fraction(film.get(cv2.CAP_PROP_FPS)).limit_denominator(1001)
        yield rate, max(0, int(film.get(cv2.CAP_PROP_FRAME_COUNT))), frames()
    finally:
        film.release()


@contextlib.contextmanager
def _write_with_opencv(partial, hw, rate):
    named = partial.with_name(f"{partial.name}{SUFFIX}")  # OpenCV chooses the format by the suffix
    film = cv2.VideoWriter(str(named), cv2.VideoWriter.fourcc(*"mp4v"), float(rate), (hw[1], hw[0]))
    try:
        if not film.isOpened():
            raise OSError("OpenCV cannot open it")

        def write(pixels):
            film.write(np.ascontiguousarray(pixels[..., ::-1]))

        yield write
        film.release()
        named.replace(partial)
    finally:
        film.release()
        named.unlink(missing_ok=True)


def _unreadable(path, reason):
    return DataError(f"{path} cannot be read as a video: {reason}")
