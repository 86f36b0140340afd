"""The vision transformers of DINOv2 (arXiv:2304.07193), with and without registers.

They differ from those of DINOv3 in a table of positions, in patches of 14 pixels, and in numbers.
"""

import functools
from collections.abc import Sequence

from jaxtyping import Array, Float

from jaxseg.models.backbones.dinov3 import DINOv3, join_tokens
from jaxseg.ops.resize import (
    along_height,
    along_width,
    antialiased_matrix,
    cubic_matrix,
    smooth_cubic,
)

OFFSET = 0.1  # added to the sides of a grid where the original scales positions by a factor


def resize_positions(
    table: Float[Array, "1 m c"], hw: Sequence[int], smooth: bool
) -> Float[Array, "1 h w c"]:
    """Resizes the positions of a square grid of patches, bicubically.

    Args:
      table: the positions, row after row.
      hw: height and width of the new grid, in patches.
      smooth: whether neighbors are averaged where the grid gets smaller, as for models with
        registers. Otherwise, the scale is (side + 0.1) / (side of the table).
    """
    side = round(table.shape[1] ** 0.5)
    grid = table.reshape(1, side, side, -1)
    if tuple(hw) == (side, side):
        return grid
    for along, count in ((along_height, hw[0]), (along_width, hw[1])):
        if smooth:
            matrix = antialiased_matrix(side, count, smooth_cubic, reach=2)
        else:
            matrix = cubic_matrix(side, count, (count + OFFSET) / side)
        grid = along(matrix, grid)
    return grid


class DINOv2(DINOv3):
    """A transformer of DINOv2: feature maps after some of its blocks, all at stride 14.

    Attributes:
      storage_tokens: the number of registers.
      pretrain_grid: the side of the table of positions, in patches.
    """

    storage_tokens: int = 0
    patch: int = 14
    pretrain_grid: int = 37

    epsilon = 1e-6
    initial_scale = 1.0
    masks_key_bias = False

    def _with_prefix(self, patches):
        table = self.tokens("pos_embed", 1 + self.pretrain_grid**2)
        resize = functools.partial(resize_positions, smooth=bool(self.storage_tokens))
        patches = patches + resize(table[:, 1:], patches.shape[1:3])
        prefix = [self.tokens("cls_token", 1) + table[:, :1]]
        if self.storage_tokens:
            prefix.append(self.tokens("register_tokens", self.storage_tokens))
        return join_tokens(prefix, patches)

    def _positions(self, hw, train):
        return lambda: None
