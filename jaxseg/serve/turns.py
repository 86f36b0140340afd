"""Lets requests use the device one at a time, in order, and admits a bounded number of them."""

import contextlib
from collections.abc import AsyncIterator, Iterator

import anyio
from starlette.exceptions import HTTPException

RETRY_SECONDS = 10


class Turns:
    """A queue of requests.

    Args:
      most: the number of requests that are admitted at a time.
    """

    def __init__(self, most: int):
        self._most, self._admitted, self._device = most, 0, anyio.Lock()

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
    async def turn(self) -> AsyncIterator[None]:
        """Waits until all requests that asked before are done."""
        async with self._device:
            yield
