"""Builds training batches: shuffled, augmented, read ahead by worker processes, resumable.

`training_batches` is deterministic in (seed, epoch, index). The numbers of workers and of processes
decide which of them makes a sample. They never change its place or its augmentation.
"""

import copy
import functools
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags

from jaxseg.data import transforms
from jaxseg.data.samples import open_sample
from jaxseg.data.source import trained_on
from jaxseg.errors import ConfigError, CorruptFileError, DataError, first_line


def training_batches(config, *, batch_size, seed, rows=None) -> "Batches":
    """Returns the endless training batches of one process, as an iterator that can be resumed.

    Every epoch has another order and other augmentations. A dataset smaller than a batch repeats
    within the batch.

    Args:
      config: has dataset, root, train_split, workers, prefetch, skip_corrupt, and what
        `transforms.train_transform` needs.
      batch_size: the samples per batch, over all processes.
      seed: from 0 to 2**32 - 1.
      rows: which b samples of every batch this process reads. None reads all.

    Returns:
      An iterator over {"image": float32 [b, H, W, 3] (RGB, normalized), "label": int32 [b, H, W]
      (255 = ignore), "replaced": int32 [b]}. With `config.skip_corrupt`, the next readable sample
      takes the place of a file that cannot be read. "replaced" counts the samples that were
      skipped.

    Raises:
      ConfigError: if `rows` is empty.
      DataError: if the dataset is missing or incomplete. The iterator raises it for a bad sample.
    """
    rows = range(batch_size) if rows is None else rows
    if not rows:
        raise ConfigError(f"No batches of {batch_size}: every process needs at least one sample.")
    samples = trained_on(config).samples()
    load = functools.partial(_load, samples=samples, config=config)
    # Random numbers depend only on the index in the whole sequence, not on the process.
    whole = grain.MapDataset.range(len(samples)).seed(seed).shuffle().repeat().random_map(load)

    def batches_from(first_image):
        selected = BatchRows(whole, batch_size, rows, first_image)
        return selected.batch(len(rows), drop_remainder=True)

    return Batches(batches_from, workers=config.workers, prefetch=config.prefetch)


class BatchRows(grain.MapDataset):
    """Selects the same rows of every batch of a sequence, batch after batch.

    Args:
      sequence: the samples of all batches.
      batch_size: the samples per batch.
      rows: the indices, within a batch, of the samples to select.
      first: the index of the first sample of batch 0. It may be below 0 if the first batches are
        not read.
    """

    def __init__(
        self, sequence: grain.MapDataset, batch_size: int, rows: Sequence[int], first: int
    ):
        super().__init__(sequence)
        self._batch_size, self._rows, self._first = batch_size, rows, first

    def __len__(self) -> int:
        images = len(self._parent) - max(self._first, 0)
        return images // self._batch_size * len(self._rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, len(self._rows))
        return self._parent[self._first + batch * self._batch_size + self._rows[row]]


class Batches(grain.DatasetIterator):
    """Iterates over batches; its state is the number of batches taken and the first image.

    Therefore a run can resume with another number of workers, of processes, or of images in a
    batch. grain's own iterators tie their state to these numbers.

    Args:
      batches_from: returns the dataset of batches, given the index of the first image of batch 0.
      workers: the processes that read ahead. With 0, a thread of this process does.
      prefetch: the batches that each worker keeps ready. With 0 and no workers, nothing is read
        ahead.
    """

    def __init__(
        self, batches_from: Callable[[int], grain.MapDataset], *, workers: int, prefetch: int
    ):
        super().__init__()
        self._batches_from, self._workers, self._prefetch = batches_from, workers, prefetch
        self._taken = self._first_image = 0
        self._readers = []  # holds one reader, or none before the first batch
        # At interpreter exit, this closes the readers while the modules they need still exist.
        weakref.finalize(self, self._close_all, self._readers)

    def __next__(self) -> dict[str, np.ndarray]:
        if self._closed:
            raise ValueError("These batches were closed; make new ones and set their state.")
        try:
            batch = next(self._reader())
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            raise DataError(
                f"a process that reads data has ended ({first_line(error)}). A script that trains"
                ' needs its calls below `if __name__ == "__main__":`, because these processes'
                " import it. Otherwise the lines above say more, or memory ran out:"
                " --config.data.workers=0 reads without them"
            ) from error
        self._taken += 1
        # Copies the arrays out of the workers' shared memory. Shared arrays that are still alive at
        # interpreter exit would be reported as leaks.
        return {name: np.array(array) for name, array in batch.items()}

    def get_state(self) -> dict[str, int]:
        """Returns the state to save: the batches taken, and the first image of batch 0."""
        return {"batches_taken": self._taken, "first_image": self._first_image}

    def set_state(self, state: dict[str, int]) -> None:
        """Continues after the batch at which `get_state` returned this state."""
        self._close_all(self._readers)
        self._taken, self._first_image = int(state["batches_taken"]), int(state["first_image"])

    def start_prefetch(self) -> None:
        """Starts to read ahead before the first batch is requested."""
        self._reader().start_prefetch()

    def close(self) -> None:
        """Ends the workers; no batches can be taken afterwards."""
        super().close()
        self._close_all(self._readers)

    @staticmethod
    def _close_all(readers: list) -> None:
        while readers:
            readers.pop().close()

    def _reader(self) -> grain.DatasetIterator:
        if not self._readers:
            self._readers.append(self._read_from(self._taken))
        return self._readers[0]

    def _read_from(self, start: int) -> grain.DatasetIterator:
        batches = self._batches_from(self._first_image).slice(slice(start, None))
        if not self._workers:
            threads = min(self._prefetch, 1)
            return iter(batches.to_iter_dataset(grain.ReadOptions(threads, self._prefetch)))
        # grain reads absl flags. Programs that are not absl apps never parse them.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        # The workers have no threads, so `prefetch` bounds the ready batches and their memory.
        batches = batches.to_iter_dataset(grain.ReadOptions(0, 0))
        options = grain.MultiprocessingOptions(self._workers, max(self._prefetch, 1))
        return iter(batches.mp_prefetch(options, worker_init_fn=_start_worker))


def _load(index: int, rng: np.random.Generator, *, samples, config) -> dict[str, Any]:
    """Returns one augmented sample, and how many unreadable ones before it were skipped."""
    for replaced in range(len(samples)):
        try:
            opened, label = open_sample(samples[(index + replaced) % len(samples)])
            # Every attempt starts from the same random state: some files fail only after drawing,
            # when their crop is decoded.
            fresh = copy.deepcopy(rng)
            image, label = transforms.train_transform(opened.first_rows, label, config, fresh)
        except CorruptFileError as error:
            if not config.skip_corrupt:
                advice = "restore the file, or skip such files: --config.data.skip_corrupt=True"
                raise CorruptFileError(f"{error}; {advice}") from error
            last_error = error
        else:
            label = label.astype(np.int32)
            return {"image": image, "label": label, "replaced": np.int32(replaced)}
    raise DataError(f"None of the {len(samples)} samples can be read. The last one: {last_error}")


def _start_worker(worker_index: int, worker_count: int) -> None:
    # OpenCV uses one thread per worker, since the workers already run in parallel.
    cv2.setNumThreads(0)
    # Only the main process answers signals to the process group: it still takes batches while it
    # saves. A worker ends when the main process tells it to, or when that process is gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)
