"""What the files of pre-trained backbones lack, and tables of positions that are of another grid.

It is what the originals do when they load one: DeiT, AugReg, BEiT, BEiTv2, Uni-Perceiver and
InternImage. Names are PyTorch's, of the whole segmentor: `backbone.blocks.0.…`.
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from converters import rules
from jaxseg.errors import CheckpointError
from jaxseg.models.transfer import Shape
from jaxseg.ops import position_tables

NO_LAYER_SCALE = "layer scale 1: the pre-training had none"
# Tables of absolute positions, [..., rows, channels], and how many rows come before those of the
# n × n patches.
POSITIONS = {
    "backbone.pos_embed": 1,
    "backbone.visual_embed.patch_embed.spatial_pos_embed.weight": 0,
}
TABLE = "relative_position_bias_table"  # [rows, heads]; the end of its name, and of its path here
SHARED_TABLE = f"backbone.rel_pos_bias.{TABLE}"


@dataclasses.dataclass(frozen=True)
class Table:
    """How a block's table of relative positions is made from one of the file.

    Attributes:
      source: the name of the file's table.
      shared: whether that is one for all blocks.
      from_hw: its window, in patches.
      hw: the window of the model.
    """

    source: str
    shared: bool
    from_hw: tuple[int, int]
    hw: tuple[int, int]

    def made_from(self, table: np.ndarray) -> np.ndarray:
        """The block's table, float32."""
        return position_tables.resize_relative(table.astype(np.float32), self.from_hw, self.hw)

    @property
    def why(self) -> str:
        which = "the one table of relative positions" if self.shared else "relative positions"
        if self.from_hw == self.hw:
            return f"{which}, for every block"
        return f"{which}, resized from {_size(self.from_hw)} to {_size(self.hw)} patches"


def without_layer_scale(available: Iterable[str], paths: Mapping[str, str]) -> dict[str, str]:
    """Paths of the model's layer scales, with the reason, where the file has none.

    Plain ViTs and InternImage-T are pre-trained without; their segmentors start it at 1.
    """

    def scales(names):
        return [name for name in names if name.endswith((".gamma1", ".gamma2"))]

    if scales(available):
        return {}
    return {paths[name]: NO_LAYER_SCALE for name in scales(paths)}


def parts_added(available: Iterable[str], paths: Mapping[str, str]) -> dict[str, str]:
    """Paths of what the model adds to the backbone, with the reason.

    A part as a whole: where the file has some of it, the rest is missing.
    """
    added = {}
    for pattern, why in rules.FRESH_OF_PRETRAINED:
        if not any(re.search(pattern, name) for name in available):
            added |= {path: why for name, path in paths.items() if re.search(pattern, name)}
    return added


def relative_tables(
    available: Mapping[str, Shape], expected: Mapping[str, Shape], window: Sequence[int] | None
) -> dict[str, Table]:
    """By name, the model's tables that the file has for another window, or once for all blocks.

    Args:
      window: of the model's tables; None: a square one. Those of the file are of square windows.
    """
    shared = SHARED_TABLE in available
    tables = {}
    for name, (rows, heads) in _tables(expected):
        source = SHARED_TABLE if shared else name
        from_rows, from_heads = available.get(source, (rows, None))
        if from_heads == heads and (shared or from_rows != rows):
            from_hw, hw = _square_window(from_rows), tuple(window or _square_window(rows))
            if from_hw and hw:
                tables[name] = Table(source, shared, from_hw, hw)
    return tables


def other_grids(
    available: Mapping[str, Shape], expected: Mapping[str, Shape], source: str
) -> Iterator[str]:
    """Advice where positions of the file `source` are of another grid than the model's."""
    for name, before in POSITIONS.items():
        (*_, rows, width), wanted = (shapes.get(name, (0, 0)) for shapes in (available, expected))
        side = math.isqrt(max(rows - before, 0))
        if width == wanted[-1] and rows != wanted[-2] and side**2 == rows - before:
            yield (
                f"The file's positions are of {_size((side, side))} patches:"
                f" --config.model.backbone.pretrain_grid={side}"
            )
    for name, (rows, heads) in _tables(expected):
        from_rows, from_heads = available.get(name, (rows, heads))
        if from_heads == heads and from_rows != rows and (hw := _square_window(from_rows)):
            yield (
                f"The file's relative positions are of {_size(hw)} patches:"
                f" --config.model.backbone.window='{hw}'; or train from it, which resizes them:"
                f" --config.init={source}"
            )
            break


def _square_window(rows: int) -> tuple[int, ...]:
    """The window of a table of that many rows; () where it is not square."""
    with contextlib.suppress(CheckpointError):
        return position_tables.square_window(rows)
    return ()


def _tables(shapes: Mapping[str, Shape]) -> list[tuple[str, Shape]]:
    return [(name, shape) for name, shape in shapes.items() if name.endswith(TABLE)]


def _size(hw: Sequence[int]) -> str:
    return f"{hw[0]} x {hw[1]}"
