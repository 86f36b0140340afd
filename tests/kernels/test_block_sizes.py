"""The launch sizes of the GPU kernels: what is chosen where, and how it is found without a GPU."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import bench, reference, shapes
from pallas_kernels.gpu import block_sizes
from pallas_kernels.gpu import operators as gpu
from pallas_kernels.gpu.block_sizes import BlockSize, Kernel
from support.absent_gpu import KIND, absent_gpu
from support.reference_files import relative_error

# Jax says so from 0.11 on; `pallas_kernels.gpu.samples` is the only file that knows of Triton.
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")

CALL = shapes.DCNv3(height=1, width=3, groups=2, group_channels=256)
ROWS = 6
FORWARD = Kernel("dcnv3_forward", 256, 4)


def test_a_thread_has_sixteen_bytes_where_nothing_is_known():
    assert block_sizes.block_size(FORWARD) == BlockSize(warps=4, rows=2)
    assert block_sizes.block_size(Kernel("dcnv3_forward", 16, 2)) == BlockSize(warps=4, rows=64)
    assert block_sizes.block_size(Kernel("dcnv3_forward", 4096, 4)) == BlockSize(warps=4, rows=1)


@pytest.mark.parametrize(("channels", "itemsize"), [(16, 2), (256, 4), (4096, 4)])
def test_candidates_can_be_launched(channels, itemsize):
    kernel = Kernel("dcnv3_forward", channels, itemsize)
    sizes = block_sizes.candidates(kernel)
    assert block_sizes.default(kernel) in sizes
    assert len(set(sizes)) == len(sizes)
    assert {size.warps for size in sizes} == {1, 2, 4, 8}
    assert all(size.rows & (size.rows - 1) == 0 and size.rows > 0 for size in sizes)


@functools.cache
def results(operator, **options):
    """Output and gradients of the call."""
    bind, arguments = bench.dcnv3_case(CALL, 1, jnp.float32)

    def run(*arguments):
        output, transpose = jax.vjp(bind(functools.partial(operator, **options)), *arguments)
        return output, *transpose(jnp.cos(output))

    return jax.jit(run)(*arguments)


@pytest.mark.parametrize("rows", sorted({size.rows for size in block_sizes.candidates(FORWARD)}))
def test_every_candidate_gives_the_same(rows):
    """Also a block that is larger than all rows together."""
    found = results(gpu.dcnv3, interpret=True, block_size=lambda kernel: BlockSize(4, rows))
    for result, expected in zip(found, results(reference.dcnv3), strict=True):
        assert relative_error(result, expected) < 1e-5  # float32 rounding, sums in another order


@pytest.mark.parametrize(
    ("device", "expected"), [(KIND, BlockSize(8, 4)), ("NVIDIA B200", BlockSize(4, 2))]
)
def test_a_program_has_what_was_tuned_for_its_device(monkeypatch, device, expected):
    monkeypatch.setitem(block_sizes.TUNED, device, {FORWARD: BlockSize(8, 4)})
    bind, arguments = bench.dcnv3_case(CALL, 1, jnp.float32)
    with absent_gpu():
        traced = jax.jit(bind(gpu.dcnv3)).trace(*arguments)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert int(re.search(r"num_warps = (\d+)", text)[1]) == expected.warps
    assert int(re.search(r"grid_x = (\d+)", text)[1]) == -(-ROWS // expected.rows)


def test_fastest_of_the_times():
    other = FORWARD._replace(channels=32)
    times = {
        FORWARD: {BlockSize(4, 8): 2.0, BlockSize(8, 16): 1.0},
        other: {BlockSize(4, 16): 1.5, BlockSize(1, 4): 1.6},
    }
    assert block_sizes.fastest(times) == {FORWARD: BlockSize(8, 16), other: BlockSize(4, 16)}


@pytest.mark.usefixtures("unchecked_types")
def test_autotune_changes_one_kernel_at_a_time(monkeypatch):
    other = BlockSize(warps=2, rows=4)

    def launches(functions):
        """Instead of seconds: what the kernels of each program are launched with."""
        found = {}
        for size, (function, arguments) in functions.items():
            text = str(jax.make_jaxpr(function)(*arguments))
            names, warps, grids = (
                re.findall(pattern, text)
                for pattern in (r"name=jaxseg_(\w+)", r"num_warps=(\d+)", r"grid=\((\d+),\)")
            )
            sizes = zip(map(int, warps), map(int, grids), strict=True)
            found[size] = dict(zip(names, sizes, strict=True))
        return found

    monkeypatch.setattr(bench, "seconds", launches)
    monkeypatch.setattr(block_sizes, "candidates", lambda kernel: [other])
    times = bench.tuning_seconds(CALL, 1, jnp.float32, interpret=True)
    passes = {
        "forward": {"forward"},
        "points_gradient": {"forward", "points_gradient", "value_gradient"},
        "value_gradient": {"forward", "points_gradient", "value_gradient"},
        "value_gradient_in_order": {"forward", "points_gradient", "value_gradient_in_order"},
    }
    assert {kernel.name for kernel in times} == {f"dcnv3_{name}" for name in passes}
    for kernel, by_size in times.items():
        expected = {f"dcnv3_{name}": (4, 3) for name in passes[kernel.name.removeprefix("dcnv3_")]}
        assert by_size == {other: expected | {kernel.name: (2, 2)}}


def test_autotune_writes_what_the_kernels_read(monkeypatch, tmp_path):
    """Times of all calls count together: the second call turns the choice of the first."""
    slow, fast = block_sizes.default(FORWARD), BlockSize(8, 16)
    times = {"first": {slow: 0.001, fast: 0.002}, "second": {slow: 0.005, fast: 0.001}}
    monkeypatch.setattr(bench, "tuning_seconds", lambda call, *_: {FORWARD: times[call]})
    other = FORWARD._replace(channels=8)
    file = tmp_path / "tuned.json"
    file.write_text("{}")
    block_sizes.write(KIND, {other: slow, FORWARD: slow}, file)
    block_sizes.write("another", {other: fast}, file)
    rows = bench.autotune([(name, name) for name in times], 2, "float32", KIND, file)
    assert rows == [
        FORWARD._asdict() | fast._asdict() | {"milliseconds": 3.0, "milliseconds_by_default": 6.0}
    ]
    assert block_sizes.read(file) == {KIND: {other: slow, FORWARD: fast}, "another": {other: fast}}


def test_autotune_wants_a_gpu():
    with pytest.raises(SystemExit, match="for the kernels for GPUs, and this is a cpu"):
        bench.main(["--autotune"])
