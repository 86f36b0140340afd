"""Which implementation an operator takes where."""

import contextlib

import jax
import jax.numpy as jnp
import pytest
from absent_gpu import absent_gpu

import pallas_kernels

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
MARKS = {"gpu": "__gpu$xla.gpu.triton", "tpu": "tpu_custom_call"}  # of kernels in a program
LOWERED = {"gpu": "cuda", "tpu": "tpu"}
GEOMETRY = {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1}
LEVELS = ((4, 4), (2, 2))


def dcnv3(value, offset, mask, geometry):
    return pallas_kernels.dcnv3(value, offset, mask, groups=2, offset_scale=1.0, **geometry)


def lowered(operator, shapes, dtype, platform):
    """The program of the operator and its gradients, as text."""
    value, *others = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    value = jax.ShapeDtypeStruct(value.shape, dtype)
    loss = jax.grad(lambda *inputs: operator(*inputs).astype(jnp.float32).sum(), argnums=(0, 1, 2))
    with absent_gpu() if platform == "cuda" else contextlib.nullcontext():
        traced = jax.jit(loss).trace(value, *others)
        return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.fixture(params=["gpu", "tpu"])
def platform(request, monkeypatch):
    """As if this machine had such devices; what was traced without them is forgotten."""
    monkeypatch.setattr(pallas_kernels, "_platform", lambda: request.param)
    jax.clear_caches()
    yield request.param
    jax.clear_caches()


CALLS = {
    "dcnv3": (
        lambda *inputs: dcnv3(*inputs, GEOMETRY),
        ((1, 5, 6, 32), (1, 5, 6, 36), (1, 5, 6, 18)),
    ),
    "ms_deform_attn": (
        lambda value, *others: pallas_kernels.ms_deform_attn(value, LEVELS, *others),
        ((1, 20, 2, 16), (1, 7, 2, 2, 4, 2), (1, 7, 2, 2, 4)),
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_accelerators_have_kernels_and_no_gather(platform, call, dtype):
    text = lowered(*call, dtype, LOWERED[platform])
    assert MARKS[platform] in text
    assert "stablehlo.gather" not in text
    # The same machine's CPU can run it, too.
    text = lowered(*call, dtype, "cpu")
    assert MARKS[platform] not in text
    assert "stablehlo.gather" in text


def test_what_a_kernel_does_not_take_goes_without(platform):
    call = CALLS["dcnv3"]
    assert MARKS[platform] not in lowered(*call, jnp.float16, LOWERED[platform])

    def five_by_five(*inputs):
        return dcnv3(*inputs, GEOMETRY | {"kernel_size": 5, "padding": 2})

    shapes = ((1, 5, 6, 32), (1, 5, 6, 100), (1, 5, 6, 50))
    text = lowered(five_by_five, shapes, jnp.float32, LOWERED[platform])
    assert (MARKS[platform] in text) == (platform == "gpu")  # that of TPUs is for 3 × 3 alone


def test_what_does_not_fit_in_the_memory_of_a_tpu_goes_without(monkeypatch):
    monkeypatch.setattr(pallas_kernels, "_platform", lambda: "tpu")
    jax.clear_caches()
    image = (1, 2048, 2048)
    large = {
        "dcnv3": [(*image, 32), (*image, 36), (*image, 18)],
        "ms_deform_attn": [(1, 2048**2 + 4, 2, 16), (1, 7, 2, 2, 4, 2), (1, 7, 2, 2, 4)],
    }
    operators = {
        "dcnv3": CALLS["dcnv3"][0],
        "ms_deform_attn": lambda value, *others: pallas_kernels.ms_deform_attn(
            value, ((2048, 2048), (2, 2)), *others
        ),
    }
    for name, shapes in large.items():
        assert MARKS["tpu"] not in lowered(operators[name], shapes, jnp.float32, "tpu")
    jax.clear_caches()


def test_the_mesh_that_is_set_tells_the_platform():
    assert pallas_kernels._platform() == jax.default_backend()
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        assert pallas_kernels._platform() == jax.devices()[0].platform


def test_named_implementations_take_only_what_they_can():
    arrays = [jnp.zeros(shape) for shape in CALLS["dcnv3"][1]]
    with pytest.raises(ValueError, match="take implementation='xla'"):
        pallas_kernels.dcnv3(
            *arrays,
            **GEOMETRY | {"dilation": 2, "padding": 2},
            groups=2,
            offset_scale=1.0,
            implementation="tpu",
        )
