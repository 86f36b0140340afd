"""Reads the image that a request carries as its body, and refuses what is too large."""

import io

import anyio
import numpy as np
from jaxtyping import UInt8
from starlette.exceptions import HTTPException
from starlette.requests import Request

from jaxseg.data.decoding import arrays, pictures
from jaxseg.errors import DataError
from jaxseg.serve.limits import Limits


class Upload:
    """The content of an image file in memory, in place of a path (`pictures.PictureFile`)."""

    stem = "upload"

    def __init__(self, content: bytes):
        self._content = content

    def __str__(self) -> str:
        return "the upload"

    def read_bytes(self) -> bytes:
        return self._content

    def open(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._content)


async def read_upload(request: Request, limits: Limits) -> Upload:
    """Reads the body of a request.

    A body that announces too many bytes is refused at once, and any other as soon as it has had
    too many.

    Raises:
      HTTPException: for a form, no body, a body that is too large, or one that takes too long.
    """
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise HTTPException(
            415, "send the image file itself as the body, not a form: curl --data-binary @photo.jpg"
        )
    announced = request.headers.get("content-length", "")
    if announced.isdecimal():
        _check_bytes(int(announced), limits)
    content = bytearray()
    try:
        with anyio.fail_after(limits.upload_seconds):
            async for chunk in request.stream():
                content += chunk
                _check_bytes(len(content), limits)
    except TimeoutError as error:
        raise HTTPException(
            408, f"the upload took longer than {limits.upload_seconds:g} s"
        ) from error
    if not content:
        raise HTTPException(400, "the request has no body; send the image file as its body")
    return Upload(bytes(content))


def decode(upload: Upload, limits: Limits) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an upload to RGB. The header is checked first, before memory is taken for pixels.

    Raises:
      DataError: if it is not an image, or damaged.
      HTTPException: if it has too many pixels.
    """
    if upload.read_bytes().startswith(arrays.MAGIC):  # what packed datasets hold
        raise DataError(f"{upload} cannot be read: it is an array of NumPy, not an image")
    height, width = pictures.image_hw(upload)
    if height * width > limits.pixels:
        raise HTTPException(
            413,
            f"the image has {width} x {height} pixels, and the limit is"
            f" {limits.pixels / 1e6:g} megapixels",
        )
    return np.ascontiguousarray(pictures.read_image(upload)[..., ::-1])


def _check_bytes(count: int, limits: Limits):
    if count > limits.upload_bytes:
        raise HTTPException(413, f"the upload is larger than {limits.upload_bytes / 1e6:g} MB")
