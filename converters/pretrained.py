"""Fills what files of pre-trained backbones lack, and resizes their tables of positions.

The rules are those of the originals when they load such a file: DeiT, AugReg, BEiT, BEiTv2,
Uni-Perceiver and InternImage. Names are PyTorch's names in the whole segmentor:
`backbone.blocks.0.…`.
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
# Tables of absolute positions, [..., rows, channels] -> how many rows precede those of the n × n
# patches.
POSITIONS = {
    "backbone.pos_embed": 1,
    "backbone.visual_embed.patch_embed.spatial_pos_embed.weight": 0,
}
PERIODS = "backbone.rope_embed.periods"
# End of a name -> how the model has it by itself, where a file of DINOv3 does not.
ROTARY = {
    ".rope_embed.periods": "periods of rotary positions: from the width of a head",
    ".attn.qkv.bias": "biases of queries and values: zero",
}
TABLE = "relative_position_bias_table"  # [rows, heads]; PyTorch name and path end in this
SHARED_TABLE = f"backbone.rel_pos_bias.{TABLE}"


@dataclasses.dataclass(frozen=True)
class Table:
    """Describes how a block's table of relative positions is made from a table of the file.

    Attributes:
      source: the name of the file's table.
      shared: whether all blocks share that table.
      from_hw: the window of the file's table, in patches.
      hw: the window of the model's table, in patches.
    """

    source: str
    shared: bool
    from_hw: tuple[int, int]
    hw: tuple[int, int]

    def made_from(self, table: np.ndarray) -> np.ndarray:
        """Returns the block's table in float32, resized from the file's table."""
        return position_tables.resize_relative(table.astype(np.float32), self.from_hw, self.hw)

    @property
    def why(self) -> str:
        """Returns the reason that is shown to the user."""
        which = "the one table of relative positions" if self.shared else "relative positions"
        if self.from_hw == self.hw:
            return f"{which}, for every block"
        return f"{which}, resized from {_size(self.from_hw)} to {_size(self.hw)} patches"


def without_layer_scale(available: Iterable[str], paths: Mapping[str, str]) -> dict[str, str]:
    """Returns the paths of the model's layer scales, with the reason, if the file has none.

    Plain ViTs and InternImage-T are pre-trained without layer scales. Their segmentors start them
    at 1.

    Args:
      available: the PyTorch names of the file's tensors.
      paths: the model's paths, by PyTorch name.
    """

    def scales(names):
        return [name for name in names if name.endswith((".gamma1", ".gamma2"))]

    if scales(available):
        return {}
    return {paths[name]: NO_LAYER_SCALE for name in scales(paths)}


def rotary_buffers(available: Iterable[str], paths: Mapping[str, str]) -> dict[str, str]:
    """Returns the paths of what files of DINOv3 in other namings leave out, with the reason.

    Args:
      available: the PyTorch names of the file's tensors.
      paths: the model's paths, by PyTorch name.
    """
    derived = {}
    for end, why in ROTARY.items():
        if not any(name.endswith(end) for name in available):
            derived |= {path: why for name, path in paths.items() if name.endswith(end)}
    return derived if PERIODS in paths else {}


def parts_added(available: Iterable[str], paths: Mapping[str, str]) -> dict[str, str]:
    """Returns the paths of the parts that the model adds to the backbone, with the reason.

    A part is added only as a whole: if the file has some of it, the rest is missing.

    Args:
      available: the PyTorch names of the file's tensors.
      paths: the model's paths, by PyTorch name.
    """
    added = {}
    for pattern, why in rules.FRESH_OF_PRETRAINED:
        if not any(re.search(pattern, name) for name in available):
            added |= {path: why for name, path in paths.items() if re.search(pattern, name)}
    return added


def relative_tables(
    available: Mapping[str, Shape], expected: Mapping[str, Shape], window: tuple[int, int] | None
) -> dict[str, Table]:
    """Returns, by name, the model's tables of relative positions that the file has in another form.

    The file has them for another window, or one table for all blocks.

    Args:
      available: the shapes of the file's tensors, by PyTorch name.
      expected: the shapes that the model expects, by PyTorch name.
      window: (height, width) of the model's tables, in patches; None for square windows. The file's
        tables always have square windows.
    """
    shared = SHARED_TABLE in available
    tables = {}
    for name, (rows, heads) in _tables(expected):
        source = SHARED_TABLE if shared else name
        from_rows, from_heads = available.get(source, (rows, None))
        if from_heads == heads and (shared or from_rows != rows):
            from_hw, hw = _square_window(from_rows), window or _square_window(rows)
            if from_hw and hw:
                tables[name] = Table(source, shared, from_hw, hw)
    return tables


def other_grids(
    available: Mapping[str, Shape], expected: Mapping[str, Shape], source: str
) -> Iterator[str]:
    """Yields advice if the positions in a file are for another grid than the model's.

    Args:
      available: the shapes of the file's tensors, by PyTorch name.
      expected: the shapes that the model expects, by PyTorch name.
      source: what the advice calls the file.
    """
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


def _square_window(rows: int) -> tuple[int, int] | None:
    """Returns the window of a table with that many rows, or None if the window is not square."""
    with contextlib.suppress(CheckpointError):
        return position_tables.square_window(rows)
    return None


def _tables(shapes: Mapping[str, Shape]) -> list[tuple[str, Shape]]:
    return [(name, shape) for name, shape in shapes.items() if name.endswith(TABLE)]


def _size(hw: Sequence[int]) -> str:
    return f"{hw[0]} x {hw[1]}"
