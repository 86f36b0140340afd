"""Divides the images of one split into two, for training and for validation."""

import collections
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from jaxseg.errors import ConfigError, DataError

VALIDATION = "val"  # the name of the part for validation


@dataclass(frozen=True)
class Division:
    """Describes a division.

    Whether an image is for validation depends on its name, the share and the seed. So a new image
    moves few of the others.

    The part for validation is the split `VALIDATION`. The rest is named as the whole.

    Attributes:
      whole: the split that is divided.
      share: the share of the images that are for validation, from 0 to 1.
      by: what stays together: a "file" alone, or all files of a "folder", as frames of a video.
      seed: another one draws other images.
    """

    whole: str
    share: float
    by: Literal["file", "folder"]
    seed: int

    def covers(self, split: str) -> bool:
        """Tells whether a split is one of the two parts."""
        return split in (self.whole, VALIDATION)

    def chosen(self, names: Sequence[str], split: str) -> list[bool]:
        """Returns which images belong to a split.

        Args:
          names: the paths of the images of the whole, below their folder.
          split: the name of a part.

        Raises:
          ConfigError: for another `by`.
          DataError: if one of the parts would be empty.
        """
        if self.by not in ("file", "folder"):
            raise ConfigError(f"config.data.share_by={self.by}: 'file' or 'folder'")
        groups = [str(PurePath(name).parent) if self.by == "folder" else name for name in names]
        sizes = collections.Counter(groups)
        validation, missing = set(), self.share * len(names)
        for group in sorted(sizes, key=self._rank):
            if missing <= 0:
                break
            validation.add(group)
            missing -= sizes[group]
        if not 0 < len(validation) < len(sizes):
            units = self.by + "s" * (len(sizes) > 1)
            raise DataError(
                f"config.data.val_share={self.share} leaves no images for one of the two parts:"
                f" there are {len(names)} images, in {len(sizes)} {units}"
            )
        return [(group in validation) == (split == VALIDATION) for group in groups]

    def _rank(self, group):
        return hashlib.blake2b(f"{self.seed}/{group}".encode(), digest_size=8).digest()
