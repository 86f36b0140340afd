"""Reads the images for evaluation: every sample exactly once, at its own size, by a fixed plan."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from jaxseg.data.datasets.description import IGNORE
from jaxseg.data.samples import Sample, label_hw, read_sample


def plan_batches(samples: Sequence[Sample], batch_size: int) -> list[list[int]]:
    """Plans batches whose images all have the same size.

    Only file headers are read, so that all processes know the plan before the first image.

    Returns:
      The indices of the samples, batch by batch. The last batch of a size is filled up with -1.

    Raises:
      CorruptFileError: if the header of a label cannot be read.
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


def evaluation_images(
    samples: Sequence[Sample], config, *, process_index=0, process_count=1
) -> Iterator[dict]:
    """Reads this process's image of every planned batch, ahead of use, by threads.

    A planned batch holds one image per process.

    Args:
      config: has workers, the number of threads.

    Returns:
      An iterator over {"image": uint8 [h, w, 3] in BGR, "label": uint8 [h, w], "index": int}. An
      image of index -1 only fills up a batch, and its label is ignored everywhere. With it, all
      processes see images of the same sizes.

    Raises:
      DataError: if a sample is bad. An evaluation never leaves one out.
    """

    def load(indices):
        index = indices[process_index]
        image, label = read_sample(samples[max(index, indices[0])])
        if index < 0:
            label = np.full_like(label, IGNORE)
        return {"image": image, "label": label, "index": index}

    threads = max(config.workers, 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    images = grain.MapDataset.source(plan_batches(samples, process_count)).map(load)
    return iter(images.to_iter_dataset(options))
