"""Selects the samples of a dataset: its files, its reader and its splits."""

import os
from dataclasses import dataclass
from pathlib import Path

from jaxseg.data import picture_files
from jaxseg.data.datasets import custom, get_dataset
from jaxseg.data.datasets.description import CUSTOM, Dataset
from jaxseg.data.readers import folders, packed, tfds
from jaxseg.data.samples import Pairs, Sample
from jaxseg.errors import ConfigError

FILES = "files"
TFDS = "tfds:"


@dataclass(frozen=True)
class Source:
    """Describes where samples come from: a dataset, its folder, and one or more splits.

    Attributes:
      dataset: its classes, label values and folder layout.
      root: the folder, which holds the released files or the output of `jaxseg.data.pack`.
      split: the name of a split, or several names joined by "+", as in "train+train_extra".
      labeled: False ignores all labels, whether or not there are any.
      kind: `FILES` for the files of the release, or `TFDS` followed by the dataset's name in
        TensorFlow Datasets.
    """

    dataset: Dataset
    root: str
    split: str
    labeled: bool = True
    kind: str = FILES

    def samples(self) -> tuple[Sample, ...]:
        """Returns all samples, in the reference's order.

        The samples of a split follow its list of names, or else the order of their image paths.
        Several splits, as in "train+train_extra", come one after the other.

        Raises:
          ConfigError: if `kind` is unknown.
          DataError: if there are no images, if the list is missing, if listed images are missing,
            or if an image has no label. The message shows the expected folders and what was found
            instead.
        """
        return self.pairs(complete=True).samples

    def summary(self) -> str:
        """Returns how many images there are, and what beside them is left out and why.

        Raises:
          ConfigError, DataError: as `samples` does.
        """
        pairs = self.pairs(complete=True)
        parts = [f"{self}: {len(pairs.samples)} images"]
        if alone := pairs.labels_alone:
            more = ", …" * (len(alone) > 1)
            parts.append(f"labels without an image ({len(alone)}): {alone[0]}{more}")
        return "; ".join(parts + picture_files.describe(pairs.skipped))

    def pairs(self, *, complete: bool = False) -> Pairs:
        """Returns the samples, and the images and labels that have no counterpart.

        Args:
          complete: True also raises a DataError for an image without a label.

        Raises:
          ConfigError: if `kind` is unknown.
          DataError: if images, or the list that names them, are missing.
        """
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
    """Returns the source that a config trains on.

    Args:
      config: `config.data`, with dataset, root and train_split. It also has source if the data do
        not lie in files.
    """
    dataset = _described(config.dataset, config)
    return Source(dataset, config.root, config.train_split, kind=_kind(config))


def evaluated_on(config) -> Source:
    """Returns the source that a config evaluates on.

    Args:
      config: `config.data`, with dataset, root and val_split. It also has source if the data do not
        lie in files. Unless they are empty, val_dataset, val_root and val_source replace dataset,
        root and source.
    """
    dataset = _described(config.val_dataset or config.dataset, config)
    kind = getattr(config, "val_source", "") or _kind(config)
    return Source(dataset, config.val_root or config.root, config.val_split, kind=kind)


def _kind(config) -> str:
    # Configs in earlier checkpoints have no `source`.
    return getattr(config, "source", FILES)


def _described(name: str, config) -> Dataset:
    return custom.describe(config) if name == CUSTOM else get_dataset(name)


def find_samples(dataset_name: str, root: str | os.PathLike, split: str) -> tuple[Sample, ...]:
    """Returns the samples of a dataset, given its name, as `Source.samples` does."""
    return Source(get_dataset(dataset_name), os.fspath(root), split).samples()
