"""Batches for evaluation: every sample exactly once, at its own size, by one fixed plan."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from jaxseg.data.datasets import Sample, label_hw
from jaxseg.data.description import IGNORE
from jaxseg.data.pipeline import evaluation_sample


def plan_batches(samples: Sequence[Sample], batch_size: int) -> list[list[int]]:
    """Indices of samples, batch by batch; a batch holds images of one size only.

    Reads headers only, so that all processes know the plan before the first image. The last batch
    of a size is filled up with -1.

    Raises:
      CorruptFileError: for a label whose header cannot be read.
    """
    by_size = defaultdict(list)
    for index, sample in enumerate(samples):
        by_size[label_hw(sample)].append(index)
    batches = []
    for indices in by_size.values():
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            batches.append(batch + [-1] * (batch_size - len(batch)))
    return batches


def evaluation_batches(
    samples: Sequence[Sample], config, *, batch_size: int, process_index=0, process_count=1
) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of every planned batch, read ahead by threads.

    Each is {"image": float32 [b, h', w', 3] at test size, "label": uint8 [b, h, w] at its own,
    "index": int [b]}; rows of index -1 are filled up and all ignored.

    Raises:
      DataError: where a sample is bad; an evaluation never leaves one out.
    """
    rows = slice(
        process_index * batch_size // process_count,
        (process_index + 1) * batch_size // process_count,
    )

    def load(indices):
        # Every row is filled with the first sample's shape, which all of the batch have.
        loaded = {
            i: evaluation_sample(samples[i], config) for i in {indices[0], *indices[rows]} - {-1}
        }
        pattern = loaded[indices[0]]
        mine = [loaded.get(i) for i in indices[rows]]
        return {
            "image": np.stack([s["image"] if s else np.zeros_like(pattern["image"]) for s in mine]),
            "label": np.stack(
                [s["label"] if s else np.full_like(pattern["label"], IGNORE) for s in mine]
            ),
            "index": np.array(indices[rows]),
        }

    threads = max(config.workers, 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    batches = grain.MapDataset.source(plan_batches(samples, batch_size)).map(load)
    return iter(batches.to_iter_dataset(options))
