"""The limits of the server: what one request, and all of them together, may take."""

from typing import NamedTuple


class Limits(NamedTuple):
    """Bounds the memory and the time that requests take.

    Uploads hold at most `requests` × `upload_bytes`. Each device computes one image, which adds its
    pixels, its probabilities and its answer.

    Attributes:
      upload_bytes: bytes of one upload.
      pixels: pixels of one image.
      probabilities: probabilities of one image, pixels × classes. An image with more is answered
        without confidences.
      requests: requests that are admitted at a time; each device computes one, the others wait.
      upload_seconds: time that one upload may take.
    """

    upload_bytes: int = 32 * 10**6
    pixels: int = 32 * 10**6
    probabilities: int = 2**28
    requests: int = 32
    upload_seconds: float = 60
