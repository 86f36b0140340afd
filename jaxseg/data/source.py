"""Where the samples of a dataset come from: which files, which reader, which split."""

import os
from dataclasses import dataclass
from pathlib import Path

from jaxseg.data.datasets import custom, get_dataset
from jaxseg.data.datasets.description import Dataset
from jaxseg.data.readers import folders, packed, tfds
from jaxseg.data.samples import Pairs, Sample
from jaxseg.errors import ConfigError

FILES = "files"
TFDS = "tfds:"


@dataclass(frozen=True)
class Source:
    """Where samples come from: a dataset, the folder it lies in, and a split or several.

    The folder holds the dataset's files, or what `jaxseg.data.pack` made of them.

    labeled: False leaves labels aside, whether there are any or not.
    kind: FILES, as the dataset is released, or TFDS and a name that TensorFlow Datasets has for it.
    """

    dataset: Dataset
    root: str
    split: str
    labeled: bool = True
    kind: str = FILES

    def samples(self) -> tuple[Sample, ...]:
        """All samples, in the reference's order: that of the list that names them, or of their
        image paths; of several splits, as in "train+train_extra", one after the other.

        Raises DataError where there are no images, no list, listed images that are missing, or
        images without a label: with the folders expected and what was found in their place.
        """
        return self.pairs(complete=True).samples

    def pairs(self, *, complete: bool = False) -> Pairs:
        """What there is; with `complete`, an image without a label is a DataError, too."""
        root, splits = Path(self.root), self.split.split("+")
        if self.kind.startswith(TFDS):
            name = self.kind.removeprefix(TFDS)
            return tfds.pairs(name, self.dataset, root, splits, labeled=self.labeled)
        if self.kind != FILES:
            raise ConfigError(f"config.data.source={self.kind}: '{FILES}' or '{TFDS}NAME'")
        if packed.is_packed(root):
            return packed.pairs(self.dataset, root, splits, labeled=self.labeled)
        return folders.pairs(self.dataset, root, splits, labeled=self.labeled, complete=complete)

    def __str__(self) -> str:
        kind = "" if self.kind == FILES else f" from {self.kind}"
        return f"{self.dataset.name}{kind} in {self.root}, {self.split}"


def trained_on(config) -> Source:
    """config: has dataset, root and train_split, and source where they are not files."""
    dataset = _described(config.dataset, config)
    return Source(dataset, config.root, config.train_split, kind=_kind(config))


def evaluated_on(config) -> Source:
    """config: has dataset, root and val_split, and source where they are not files; val_dataset,
    val_root and val_source, unless they are empty, go before these."""
    dataset = _described(config.val_dataset or config.dataset, config)
    kind = getattr(config, "val_source", "") or _kind(config)
    return Source(dataset, config.val_root or config.root, config.val_split, kind=kind)


def _kind(config) -> str:
    # Configs in earlier checkpoints have none.
    return getattr(config, "source", FILES)


def _described(name: str, config) -> Dataset:
    return custom.describe(config) if name == custom.NAME else get_dataset(name)


def find_samples(dataset_name: str, root: str | os.PathLike, split: str) -> tuple[Sample, ...]:
    """The samples of a dataset by its name, as `Source.samples` gives them."""
    return Source(get_dataset(dataset_name), os.fspath(root), split).samples()
