"""Segments one image, and writes the result as PNG or JSON."""

import base64
import io
import json
import time
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxseg.segmentation import Segmentation, class_shares
from jaxseg.segmenter import Segmenter
from jaxseg.serve.limits import Limits


def class_map_png(segmenter: Segmenter, image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Returns the class of every pixel as a gray PNG."""
    return _png(_segment(segmenter, image).classes)


def overlay_png(segmenter: Segmenter, image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Returns the image with the classes in color over it and a legend, as PNG."""
    return _png(_segment(segmenter, image).overlay())


def facts_json(segmenter: Segmenter, image: UInt8[np.ndarray, "h w 3"], limits: Limits) -> bytes:
    """Returns what the page shows, as JSON: classes with shares, class map and confidences.

    The maps are PNG files of the image's size, as data URIs. A confidence of 255 is certainty. It
    is the probability of the most probable class. `confidence_map` is null for an image that has
    more probabilities than `limits` allows.
    """
    begin = time.monotonic()
    classes, confidence = _classes_and_confidence(segmenter, image, limits)
    seconds = time.monotonic() - begin
    shares = class_shares(classes, segmenter.dataset.classes)
    height, width = classes.shape
    found = [fact for fact in describe_classes(segmenter) if fact["name"] in shares]
    facts = {
        "height": height,
        "width": width,
        "seconds": round(seconds, 3),
        "classes": [
            fact | {"share": shares[fact["name"]]}
            for fact in sorted(found, key=lambda fact: -shares[fact["name"]])
        ],
        "class_map": _data_uri(classes),
        "confidence_map": None if confidence is None else _data_uri(confidence),
    }
    return json.dumps(facts).encode()


def describe_classes(segmenter: Segmenter) -> list[dict[str, Any]]:
    """Returns id, name and color (RGB) of every class."""
    dataset = segmenter.dataset
    colors = np.asarray(dataset.palette).tolist()
    return [
        {"id": number, "name": name, "color": color}
        for number, (name, color) in enumerate(zip(dataset.classes, colors, strict=True))
    ]


def _segment(segmenter, image) -> Segmentation:
    (found,) = segmenter.stream([image])
    return found


def _classes_and_confidence(segmenter, image, limits):
    """Returns the class of every pixel, and its probability as uint8, or None if too many."""
    height, width, _ = image.shape
    if height * width * len(segmenter.dataset.classes) > limits.probabilities:
        return _segment(segmenter, image).classes, None
    probabilities = segmenter.probabilities(image)
    confidence = np.rint(255 * probabilities.max(axis=-1)).astype(np.uint8)
    return probabilities.argmax(axis=-1).astype(np.uint8), confidence


def _data_uri(pixels):
    return f"data:image/png;base64,{base64.b64encode(_png(pixels)).decode()}"


def _png(pixels):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", compress_level=1)
    return content.getvalue()
