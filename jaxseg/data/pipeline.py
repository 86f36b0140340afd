"""From files to batches: shuffled, augmented, read ahead in worker processes, resumable.

`training_batches` is deterministic by (seed, epoch, index): the number of workers and the number
of processes change who makes a sample, never which sample is where or how it is augmented.
"""

import copy
import functools
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Sequence

import cv2
import grain
import numpy as np
from absl import flags

from jaxseg.data import transforms
from jaxseg.data.samples import open_sample
from jaxseg.data.source import trained_on
from jaxseg.errors import ConfigError, CorruptFileError, DataError


def training_batches(config, *, batch_size, seed, rows=None) -> "Batches":
    """The endless training batches of one process, as an iterator that can be saved and restored.

    Each is {"image": float32 [b, H, W, 3] (RGB, normalized), "label": int32 [b, H, W] (255 =
    ignore), "replaced": int32 [b]}. Every epoch has another order and other augmentations; a set
    smaller than a batch goes round several times in it.

    config: has dataset, root, train_split, workers, prefetch, skip_corrupt, and what
        `transforms.train_transform` needs.
    batch_size: samples per batch, of all processes together.
    seed: from 0 to 2**32 - 1.
    rows: which b samples of every batch this process reads; all where None.

    Raises DataError where the dataset is missing or incomplete, and from the iterator where a
    sample is bad. With `config.skip_corrupt`, a file that cannot be read gives its place to the
    next sample that can, and "replaced" counts how many were passed over.
    """
    rows = range(batch_size) if rows is None else rows
    if not rows:
        raise ConfigError(f"No batches of {batch_size}: every process needs at least one sample.")
    samples = trained_on(config).samples()
    load = functools.partial(_load, samples=samples, config=config)
    # The random numbers belong to the place in the whole sequence.
    whole = grain.MapDataset.range(len(samples)).seed(seed).shuffle().repeat().random_map(load)
    dataset = BatchRows(whole, batch_size, rows).batch(len(rows), drop_remainder=True)
    return Batches(dataset, workers=config.workers, prefetch=config.prefetch)


class BatchRows(grain.MapDataset):
    """Of a sequence, the given rows of its first batch, then those of the second, and so on."""

    def __init__(self, sequence: grain.MapDataset, batch_size: int, rows: Sequence[int]):
        super().__init__(sequence)
        self._batch_size, self._rows = batch_size, rows

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, len(self._rows))
        return self._parent[batch * self._batch_size + self._rows[row]]


class Batches(grain.DatasetIterator):
    """Iterates over a MapDataset of batches. Its whole state is the number of batches taken.

    So a run may be resumed with another number of workers, and with another number of processes
    where the global batch stays the same; grain's own iterators tie their state to both.

    workers: processes that read ahead; with 0, a thread of this process does.
    prefetch: batches that each of them keeps ready; with 0 and no workers, nothing is read ahead.
    """

    def __init__(self, batches: grain.MapDataset, *, workers: int, prefetch: int):
        super().__init__()
        self._batches, self._workers, self._prefetch = batches, workers, prefetch
        self._taken = 0
        self._readers = []  # one, or none before the first batch
        # Also at the end of the interpreter, while what closing needs is still there.
        weakref.finalize(self, self._close_all, self._readers)

    def __next__(self) -> dict[str, np.ndarray]:
        if self._closed:
            raise ValueError("These batches were closed; make new ones and set their state.")
        batch = next(self._reader())
        self._taken += 1
        # Copies out of the memory shared with the workers: what of that is still referenced when
        # the interpreter ends is reported as leaked.
        return {name: np.array(array) for name, array in batch.items()}

    def get_state(self) -> dict[str, int]:
        return {"batches_taken": self._taken}

    def set_state(self, state: dict[str, int]) -> None:
        self._close_all(self._readers)
        self._taken = int(state["batches_taken"])

    def start_prefetch(self) -> None:
        self._reader().start_prefetch()

    def close(self) -> None:
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
        batches = self._batches.slice(slice(start, None))
        if not self._workers:
            threads = min(self._prefetch, 1)
            return iter(batches.to_iter_dataset(grain.ReadOptions(threads, self._prefetch)))
        # grain reads absl flags, which programs that are not absl apps never parse.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        # No threads in the workers: what is ready, and so the memory, is bounded by `prefetch`.
        batches = batches.to_iter_dataset(grain.ReadOptions(0, 0))
        options = grain.MultiprocessingOptions(self._workers, max(self._prefetch, 1))
        return iter(batches.mp_prefetch(options, worker_init_fn=_start_worker))


def _load(index: int, rng: np.random.Generator, *, samples, config) -> dict[str, np.ndarray]:
    """One augmented training sample, and how many were passed over as unreadable before it."""
    for replaced in range(len(samples)):
        try:
            opened, label = open_sample(samples[(index + replaced) % len(samples)])
            # Every sample that is tried draws anew: some fail only when their crop is decoded.
            fresh = copy.deepcopy(rng)
            image, label = transforms.train_transform(opened.first_rows, label, config, fresh)
        except CorruptFileError as error:
            if not config.skip_corrupt:
                advice = "restore the file, or train without such: --config.data.skip_corrupt=True"
                raise CorruptFileError(f"{error}; {advice}") from error
            last_error = error
        else:
            label = label.astype(np.int32)
            return {"image": image, "label": label, "replaced": np.int32(replaced)}
    raise DataError(f"None of the {len(samples)} samples can be read. The last one: {last_error}")


def _start_worker(worker_index: int, worker_count: int) -> None:
    # One thread per worker: the workers are the parallelism.
    cv2.setNumThreads(0)
    # Signals to the whole process group are the main process's to answer; it still takes batches
    # while it saves. A worker ends when the main process tells it to, or is gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
