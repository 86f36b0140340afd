"""Gives devices to requests in order, one at a time each, and admits a bounded number of them."""

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence

import anyio
from starlette.exceptions import HTTPException

from jaxseg.segmenter import Segmenter

RETRY_SECONDS = 10


class Turns:
    """A queue of requests.

    Args:
      most: the number of requests that are admitted at a time.
      segmenters: the model, once for each device.
    """

    def __init__(self, most: int, segmenters: Sequence[Segmenter]):
        self._most, self._admitted = most, 0
        self._free, self._available = list(segmenters), anyio.Semaphore(len(segmenters))

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Admits a request, whose upload may take memory from then on.

        Raises:
          HTTPException: if there are too many already.
        """
        if self._admitted >= self._most:
            raise HTTPException(
                503,
                f"the queue is full: {self._admitted} of {self._most} requests; try again later",
                {"Retry-After": str(RETRY_SECONDS)},
            )
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[Segmenter]:
        """Waits until a device is free and no request that asked before waits for one."""
        async with self._available:
            segmenter = self._free.pop()
            try:
                yield segmenter
            finally:
                self._free.append(segmenter)
