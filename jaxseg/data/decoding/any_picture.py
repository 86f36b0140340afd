"""Opens what a caller of the library may give as an image: a file, an image of Pillow, an array."""

import os
import pathlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from jaxseg.data.decoding import pictures

Picture = str | os.PathLike | Image.Image | UInt8[np.ndarray, "_ _ 3"]


def open_picture(image: Picture) -> UInt8[np.ndarray, "h w 3"]:
    """Returns an image as an RGB array. Files and images of Pillow are rotated by their EXIF data.

    Raises:
      DataError: if a file cannot be read.
      ValueError: for an array that is not RGB uint8, or an image of Pillow with more than 8 bits.
    """
    if isinstance(image, (str, os.PathLike)):
        return np.ascontiguousarray(pictures.read_image(pathlib.Path(image))[..., ::-1])
    if isinstance(image, Image.Image):
        if image.mode[0] in "IF":
            raise ValueError(f"an image of 8 bits is needed, not one of mode {image.mode}")
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an RGB uint8 image [h, w, 3] is needed, not {image.dtype} {image.shape}")
    return image
