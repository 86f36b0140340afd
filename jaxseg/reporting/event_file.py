"""Writes the events that TensorBoard shows.

They are written one after the other and at once, so that an error reaches the caller. The
`SummaryWriter` of tensorboardX hands them to a thread instead. That thread ends when the disk is
full, and the next event then waits for it without end.
"""

import os
import pathlib
import time
from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2


class EventFile:
    """A file of events in a directory; TensorBoard reads all files of the directory.

    Args:
      directory: where the file is made.
      first_step: TensorBoard drops what older files hold from this step on.

    Raises:
      OSError: by every method, if the file cannot be written.
    """

    def __init__(self, directory: pathlib.Path, first_step: int):
        self._writer = EventsWriter(str(directory / "events"), f".{os.getpid()}")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(event_pb2.Event(step=first_step, session_log=start))

    def add_scalars(self, step: int, values: Mapping[str, float]):
        """Adds values by name."""
        for name, value in values.items():
            self._write(event_pb2.Event(step=step, summary=summary.scalar(name, value)))
        self._writer.flush()

    def add_image(self, step: int, name: str, picture: UInt8[np.ndarray, "h w 3"]):
        """Adds an RGB picture."""
        content = summary.image(name, picture, dataformats="HWC")
        self._write(event_pb2.Event(step=step, summary=content))
        self._writer.flush()

    def close(self, failed: bool = False):
        """Closes the file, with all events on disk. Other trackers also say that a run failed."""
        self._writer.close()

    def _write(self, event):
        event.wall_time = time.time()
        self._writer.write_event(event)
