"""Selects the samples of a dataset: its files, its reader and its splits."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from jaxseg.data import picture_files
from jaxseg.data.datasets import custom, get_dataset
from jaxseg.data.datasets.description import CUSTOM, Dataset
from jaxseg.data.division import VALIDATION
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
        if self.kind != FILES and self.dataset.division:
            raise ConfigError(
                f"config.data.val_share={self.dataset.division.share} divides folders of files, not"
                f" config.data.source={self.kind}; set config.data.val_split to one of its splits"
            )
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
    root = config.val_root or config.root
    if dataset.division and (root, kind) != (config.root, _kind(config)):
        dataset = dataclasses.replace(dataset, division=None)  # it is that of the training images
    return Source(dataset, root, config.val_split, kind=kind)


def check_sources(config):
    """Checks that a config trains and evaluates on the same classes, and on different images.

    A config may ask for the same images by the same name of a split.

    Args:
      config: `config.data`, as `trained_on` and `evaluated_on` take it.

    Raises:
      ConfigError: if it does not. The message names the settings.
    """
    training, evaluation = trained_on(config), evaluated_on(config)
    trained, evaluated = training.dataset, evaluation.dataset
    if trained.classes != evaluated.classes:
        raise ConfigError(
            f"config.data.val_dataset={evaluated.name}: its {len(evaluated.classes)} classes are"
            f" not the {len(trained.classes)} of {trained.name}, which is trained on;"
            " set config.data.val_dataset, val_root and val_split to data of these classes"
        )
    if evaluated.division and evaluation.split != VALIDATION:
        raise ConfigError(
            f"config.data.val_share={evaluated.division.share} makes the split {VALIDATION!r}, and"
            f" config.data.val_split={evaluation.split} would not use it; leave one of them out"
        )
    if trained.division or training.kind != FILES or training.split == evaluation.split:
        return
    if packed.is_packed(Path(training.root)):
        return
    one, other = (
        (
            Path(source.root, source.dataset.image_folder(source.split)),
            source.dataset.split_list_file(source.split),
        )
        for source in (training, evaluation)
    )
    if one == other:
        raise ConfigError(
            f"config.data.images={trained.images} holds no {{split}}: the model would be scored on"
            f" the images that it is trained on, those in {one[0]}. Set config.data.val_share, such"
            " as 0.1, or config.data.split_list, with {split} in it"
        )


def _kind(config) -> str:
    # Configs in earlier checkpoints have no `source`.
    return getattr(config, "source", FILES)


def _described(name: str, config) -> Dataset:
    return custom.describe(config) if name == CUSTOM else get_dataset(name)


def find_samples(dataset_name: str, root: str | os.PathLike, split: str) -> tuple[Sample, ...]:
    """Returns the samples of a dataset, given its name, as `Source.samples` does."""
    return Source(get_dataset(dataset_name), os.fspath(root), split).samples()
