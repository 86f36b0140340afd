"""Images for evaluation: every sample exactly once, at its own size, by one fixed plan."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from jaxseg.data.datasets.description import IGNORE
from jaxseg.data.samples import Sample, label_hw, read_sample


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


def evaluation_images(
    samples: Sequence[Sample], config, *, process_index=0, process_count=1
) -> Iterator[dict]:
    """This process's image of every planned batch of one per process, read ahead by threads.

    Each is {"image": uint8 [h, w, 3] in BGR, "label": uint8 [h, w], "index": int}; one of index -1
    is filled in, and all ignored, so that all processes see images of the same sizes.

    Raises:
      DataError: where a sample is bad; an evaluation never leaves one out.
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
