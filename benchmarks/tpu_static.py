"""Reports what the TPU kernels cost, as the compiler of libtpu states it; no TPU is needed.

pip install '.[tpu]'
python benchmarks/tpu_static.py [--chip v5e …] [--shapes PATTERN …] [--dtype bfloat16 …]
    [--memory-only] [--json benchmarks/results/tpu_static_v5e.json] [--table]

The program compiles both kernels of every call of the published models (`pallas_kernels.shapes`)
for one image, unless it is too large for them. For each kernel it prints the memory that it holds
and the instruction bundles that it runs. These are the bundles of its loops, counted in the
compiler's listing, times the trips that typical points cause. Typical points of DCNv3 are up to one
pixel from the 3 × 3 grid. Those of deformable attention are up to four pixels from the place of the
query. Waiting for memory is not included. A device of v5p has two cores, and the compiler divides
the parallel steps of a kernel between them; the count is that of one core. `--table` also writes
the bundles into `jaxseg/aot/kernel_cycles.json`, from which `jaxseg compile` takes the cycles of
kernels.
"""

import argparse
import collections
import datetime
import fnmatch
import importlib.metadata
import itertools
import json
import math
import os
import re
import sys
import tempfile
from pathlib import Path

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
}

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxseg.aot import hardware, hlo
from jaxseg.aot.kernel_cycles import TABLE, kernel_key
from jaxseg.aot.step_profile import KERNEL_CALL
from jaxseg.atomic_files import write_text
from pallas_kernels import shapes
from pallas_kernels.tpu import attention, attention_layout, conv3x3, dcnv3, ms_deform_attn
from pallas_kernels.tpu.planes import SUBLANES

CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "v7x": "tpu7x:2x2x1"}
CORES = {"v5p": 2}  # of one device, where there are several
REACH = 4  # pixels from a query to its points, in deformable attention


def dcnv3_kernels(call: shapes.DCNv3, dtype):
    """Returns the operator on planes, its arguments, and a function that counts bundles."""
    image = (1, call.height, call.width)
    arrays = [(call.group_channels, dtype), (18, jnp.float32), (9, jnp.float32)]
    arguments = [jax.ShapeDtypeStruct((*image, call.groups * k), kind) for k, kind in arrays]
    planes = jax.eval_shape(lambda *xs: dcnv3.planes(*xs, call.groups, 1.0), *arguments)
    images, rows, channels, sublanes, _ = planes[0].shape
    at_once = {
        "forward": dcnv3.forward_channels(planes[0]),
        "backward": dcnv3.backward_channels(planes[0]),
    }

    def bundles(direction, loops: "Loops"):
        displacements = {"forward": 5, "backward": 6}[direction]  # along x, and along y
        ((dx, pair),) = loops.last(1)
        per_row = loops.outside + displacements * (dx + math.ceil(displacements / 2) * pair)
        passes = channels // at_once[direction]
        return images * (sublanes // dcnv3.SUBLANES) * passes * rows * per_row

    return lambda *xs: dcnv3.sample(*xs, call.width), planes, bundles


def ms_deform_attn_kernels(call: shapes.MSDeformAttn, dtype):
    """Returns the same as `dcnv3_kernels`, for multi-scale deformable attention."""
    pixels = sum(height * width for height, width in call.levels)
    sampled = (1, call.queries, call.heads, len(call.levels), call.points)
    levels = ms_deform_attn.make_levels(call.levels)
    arguments = [
        jax.ShapeDtypeStruct((1, pixels, call.heads, call.head_channels), dtype),
        jax.ShapeDtypeStruct((*sampled, 2), jnp.float32),
        jax.ShapeDtypeStruct(sampled, jnp.float32),
    ]
    blocks = jax.eval_shape(
        lambda value, *points: ms_deform_attn.blocks_and_tiles(value, call.levels, *points),
        *arguments,
    )

    def bundles(_, loops: "Loops"):
        strips = [level for level in levels for _ in range(level.strips)]
        total = 0
        centers = query_rows(call)
        for first in range(0, call.queries, ms_deform_attn.TILE):
            tile = centers[first : first + ms_deform_attn.TILE]
            total += loops.outside
            for level, (block, _) in zip(strips, loops.last(len(strips)), strict=True):
                rows = tile * level.height - 0.5
                top = max(0, math.floor(rows.min() - REACH))
                bottom = min(level.height - 1, math.floor(rows.max() + REACH) + 1)
                total += (bottom // level.rows - top // level.rows + 1) * block
        return call.heads * total

    return lambda *xs: ms_deform_attn.sample(*xs, levels), blocks, bundles


def self_attention_kernels(call: shapes.SelfAttention, dtype):
    """Returns the same as `dcnv3_kernels`, for self-attention."""
    tokens, heads, channels, grid = call
    more = -heads % (attention_layout.LANES // channels)  # as the operator adds them
    heads += more
    qkv = jax.ShapeDtypeStruct((1, tokens, 3 * heads * channels), dtype)
    if grid is None:
        layout, arguments = attention_layout.of_tokens(tokens, channels), [qkv, None, None]
    else:
        layout = attention_layout.of_grid(grid, channels)
        shapes_of_bias = (heads, *layout.table_shape), (3, heads)
        arguments = [qkv, *(jax.ShapeDtypeStruct(x, jnp.float32) for x in shapes_of_bias)]

    def bundles(direction, loops: "Loops"):
        at_once = attention_layout.LANES // channels
        blocks, columns = layout.bias_shape[0], layout.width  # made by blocks, summed by columns
        made, summed = ([(1, trips)] * at_once for trips in (blocks, columns))
        main, token = (layout.blocks, layout.groups), (1, layout.groups)
        if direction == "forward":
            runs = [*made, main, token] if grid else [main]
        else:
            cleared = [(1, layout.keys // attention_layout.LANES)] * 2 * at_once
            runs = [*cleared, *([*made, *made, main, token, *summed] if grid else [main])]
        # The compiler makes no loop of a single trip.
        runs = [times * trips for times, trips in runs if trips > 1]
        found = zip(runs, loops.found, strict=True)
        inside = sum(times * sum(bundles) for times, bundles in found)
        always = loops.outside - loops.conditional
        return heads // at_once * (loops.conditional + layout.blocks * always + inside)

    return lambda *xs: attention.attend(*xs, layout), arguments, bundles


def conv3x3_kernels(call: shapes.Conv3x3, dtype):
    """Returns the same as `dcnv3_kernels`, for a 3 × 3 convolution."""
    height, width, channels, features = call
    arguments = [
        jax.ShapeDtypeStruct((1, height, width, channels), dtype),
        jax.ShapeDtypeStruct((3, 3, channels, features), dtype),
    ]
    steps = height // conv3x3.rows_of_block(height, width)

    def bundles(direction, loops: "Loops"):
        # In the backward pass, the gradient of the map is another call of the forward kernel. The
        # first step clears the gradient of the weights, which is counted in every step.
        parts = conv3x3.parts_of_gradient(features) if direction == "backward" else 1
        return parts * steps * loops.outside

    return conv3x3.conv3x3, arguments, bundles


def matrix_cycles(call: shapes.Call, chip: str) -> float:
    """Returns the cycles that the matrix units of one core need for a convolution; else 0.

    The listing of a convolution has fewer bundles, which then wait for these units.
    """
    if not isinstance(call, shapes.Conv3x3) or chip not in hardware.CHIPS:
        return 0
    found = hardware.find_chip(chip)
    per_cycle = found.flops / 2 / found.clock / CORES.get(chip, 1)
    return 9 * call.height * call.width * call.channels * call.features / per_cycle


def query_rows(call: shapes.MSDeformAttn) -> np.ndarray:
    """Returns the height of every query, from 0 to 1.

    Queries are the pixels of all levels, of the middle level, or of three scales around a single
    level.
    """
    height, width = call.levels[len(call.levels) // 2]
    if len(call.levels) == 1:
        grids = [(2 * height, 2 * width), (height, width), (height // 2, width // 2)]
    else:
        grids = [(height, width)] if call.queries == height * width else call.levels
    return np.concatenate([np.repeat((np.arange(h) + 0.5) / h, w) for h, w in grids])


class Loops:
    """Counts the bundles in a kernel's listing.

    Attributes:
      outside: the bundles of a grid step outside of loops.
      conditional: those of them that some steps skip.
      found: for every loop, its own bundles and those of a loop inside.
      steps: the grid steps of one core; None for a kernel of one step.
    """

    def __init__(self, listing: str):
        self.outside, self.conditional, self.found = 0, 0, []
        bounds = re.search(r"iteration_bounds: \(([\d, ]+)\)", listing)
        self.steps = bounds and math.prod(map(int, bounds[1].split(",")))
        skipped = 0  # regions that a branch skips, one in the other; the outermost is the step
        bundles = re.findall(
            r"^\s*(?:0x[0-9a-f]+|0)\s*(LB|PF)?\w*:?\s*((?:> ?)*)(.*)", listing, re.M
        )
        for label, marks, text in bundles:
            depth = marks.count(">")  # the grid itself is a loop
            if depth == 1:
                skipped -= label == "PF"
                self.conditional += skipped > 1
                skipped += "sbr.rel (" in text
            if depth == 2 and label == "LB":
                self.found.append([0, 0])
            if depth > 1:
                self.found[-1][depth > 2] += 1
            self.outside += depth == 1

    def last(self, count: int) -> list[list[int]]:
        """Returns the last loops: their own bundles and those of a loop inside.

        The first loops of a kernel only clear memory.
        """
        return self.found[len(self.found) - count :]


KERNELS = {
    shapes.DCNv3: dcnv3_kernels,
    shapes.MSDeformAttn: ms_deform_attn_kernels,
    shapes.SelfAttention: self_attention_kernels,
    shapes.Conv3x3: conv3x3_kernels,
}


def has_kernel(call: shapes.Call, dtype: str) -> bool:
    """Returns whether the kernel takes a call; otherwise the operator runs without one."""
    if isinstance(call, shapes.Conv3x3):
        return conv3x3.fits((1, call.height, call.width, call.channels), call.features, dtype)
    if not isinstance(call, shapes.SelfAttention):
        return True
    return attention.fits(call.tokens, call.head_channels, jnp.dtype(dtype), call.grid)


def same_program(call) -> tuple:
    """Returns what calls have in common whose kernels are the same program."""
    if isinstance(call, shapes.DCNv3):
        call = call._replace(groups=-(-call.groups // SUBLANES))
    return type(call), *call


def compile_call(call, chip: str, dtype, listings: Path | None) -> list[dict]:
    """Compiles both directions of a call and returns a row for each.

    Without `listings`, the rows have no bundles.
    """
    device = topologies.get_topology_desc(CHIPS[chip], platform="tpu").devices[0]
    where = jax.sharding.SingleDeviceSharding(device)
    operator, arguments, bundles = KERNELS[type(call)](call, dtype)
    output = jax.eval_shape(operator, *arguments)

    def backward(cotangent, *arguments):
        return jax.vjp(operator, *arguments)[1](cotangent)

    rows = []
    for direction, function, given in (
        ("forward", operator, arguments),
        ("backward", backward, (output, *arguments)),
    ):
        given = jax.tree.map(lambda x: x.update(sharding=where), given)
        compiled = jax.jit(function).lower(*given).compile()
        memory = compiled.memory_analysis()
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes
        row = {
            "chip": chip,
            "dtype": jnp.dtype(dtype).name,
            "direction": direction,
            "megabytes": round((held + memory.temp_size_in_bytes) / 1e6, 1),
        }
        if listings:
            loops = Loops(listing(listings, direction))
            steps = grid_steps(jax.make_jaxpr(function)(*given).jaxpr, direction)
            count = max(bundles(direction, loops), matrix_cycles(call, chip))
            count *= (loops.steps or steps) / steps
            key, leading = kernel_key(custom_call(compiled.as_text(), direction))
            row |= {"kilobundles": round(count / 1e3), "kernel": key, "per_slice": count / leading}
        rows.append(row)
    return rows


def grid_steps(jaxpr: Jaxpr, direction: str) -> int | None:
    """Returns the number of steps of this direction's kernel, on all cores."""
    for equation in jaxpr.eqns:
        name = equation.params.get("name", "")
        if equation.primitive.name == "pallas_call" and name.endswith(f"_{direction}"):
            return math.prod(equation.params["grid_mapping"].grid)
        values = jax.tree.leaves(equation.params, is_leaf=lambda x: isinstance(x, ClosedJaxpr))
        for inner in (value.jaxpr for value in values if isinstance(value, ClosedJaxpr)):
            if found := grid_steps(inner, direction):
                return found
    return None


def custom_call(text: str, direction: str) -> hlo.Instruction:
    """Returns the call of this direction's kernel in a compiled program."""
    (found,) = (
        instruction
        for instructions in hlo.parse(text).computations.values()
        for instruction in instructions
        if KERNEL_CALL in instruction.rest and f"_{direction}" in instruction.name
    )
    return found


def write_cycles(rows: list[dict]):
    """Writes the bundles of one slice along the first axis into the table of the package."""
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    counts = collections.defaultdict(list)
    for row in rows:
        counts[row["chip"], row["kernel"]].append(round(row["per_slice"]))
    for (chip, kernel), found in counts.items():
        table.setdefault(chip, {})[kernel] = max(found)
    ordered = {chip: dict(sorted(found.items())) for chip, found in sorted(table.items())}
    write_text(TABLE, json.dumps(ordered, indent=1) + "\n")


def listing(listings: Path, direction: str) -> str:
    """Returns the listing of this direction's kernel and removes the compiler's files."""
    (kernel,) = listings.glob(f"*_{direction}*[0-9]-final_bundles.txt")
    text = kernel.read_text()
    for file in listings.iterdir():
        file.unlink()
    return text


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chip", nargs="+", choices=CHIPS, default=list(CHIPS))
    parser.add_argument("--shapes", nargs="+", default=["*"], metavar="PATTERN")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"], choices=("bfloat16", "float32"))
    parser.add_argument("--memory-only", action="store_true", help="no bundles: much faster")
    parser.add_argument("--json", metavar="FILE", help="also write the table to this file")
    parser.add_argument("--table", action="store_true", help="also write kernel_cycles.json")
    options = parser.parse_args()
    if options.table and options.memory_only:
        parser.error("--table needs the bundles, which --memory-only leaves out")
    calls = [
        (name, call)
        for name, call in itertools.chain(shapes.every_call(), shapes.convolutions())
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in options.shapes)
    ]
    table = []
    with tempfile.TemporaryDirectory() as folder:
        listings = None if options.memory_only else Path(folder)
        if listings:  # libtpu reads the variable when the first topology is requested
            dump = f"--xla_jf_dump_to={listings} --xla_jf_dump_llo_text=true"
            os.environ["LIBTPU_INIT_ARGS"] = dump
        compiled = {}  # models share calls, and groups are padded to eight
        for chip, (name, call), dtype in itertools.product(options.chip, calls, options.dtype):
            if not has_kernel(call, dtype):
                print(f"{name}, {dtype}: too large for the kernel", file=sys.stderr)
                continue
            program = chip, same_program(call), dtype
            if program not in compiled:
                compiled[program] = compile_call(call, chip, jnp.dtype(dtype), listings)
            rows = [{"shape": name, **row} for row in compiled[program]]
            table += rows
            print(*map(json.dumps, rows), sep="\n", flush=True)
    if not table:
        sys.exit(f"tpu_static: no shape matches {options.shapes!r}")
    if options.table:
        write_cycles(table)
    if options.json:
        made = {
            "date": datetime.date.today().isoformat(),
            "jax": jax.__version__,
            "libtpu": importlib.metadata.version("libtpu"),
        }
        rows = ",\n".join(map(json.dumps, table))  # one row per line
        Path(options.json).write_text(f'{json.dumps(made)[:-1]}, "rows": [\n{rows}\n]}}\n')


if __name__ == "__main__":
    main()
