"""Which implementation an operator takes where."""

import contextlib

import jax
import jax.numpy as jnp
import pytest

import pallas_kernels
from pallas_kernels import choice, dispatch
from support.absent_gpu import absent_gpu

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
    monkeypatch.setattr(dispatch, "platform", lambda: request.param)
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
    monkeypatch.setattr(dispatch, "platform", lambda: "tpu")
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
    assert pallas_kernels.platform() == jax.default_backend()
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        assert pallas_kernels.platform() == jax.devices()[0].platform


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


def refuse(*arrays, **settings):
    raise NotImplementedError("no such instruction\nand a long story")


@pytest.fixture
def broken_here(monkeypatch):
    """As if this machine's CPU were a GPU whose kernels do not compile."""
    monkeypatch.setattr(dispatch, "platform", lambda: "gpu")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(choice, "_REFUSALS", {})
    monkeypatch.setattr(choice, "_WARNED", set())
    for operator in CALLS:
        monkeypatch.setattr(pallas_kernels.gpu.operators, operator, refuse)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize("name", CALLS)
def test_a_kernel_that_does_not_compile_gives_way_with_one_warning(broken_here, name):
    operator, shapes = CALLS[name]
    arrays = [jnp.ones(shape) for shape in shapes]
    cause = r"gpu kernel does not compile here \(NotImplementedError: no such instruction\)"
    gradient = jax.jit(jax.grad(lambda *x: operator(*x).sum(), argnums=(0, 1, 2)))
    with pytest.warns(UserWarning, match=rf"^{name}: the {cause}.*JAXSEG_KERNELS=xla") as told:
        gradients = gradient(*arrays)
    assert len(told) == 1
    assert all(bool(jnp.isfinite(x).all()) for x in gradients)
    operator(*(jnp.ones((2 * shape[0], *shape[1:])) for shape in shapes))  # without a warning


def test_a_named_kernel_that_does_not_compile_fails(broken_here):
    arrays = [jnp.ones(shape) for shape in CALLS["dcnv3"][1]]
    with pytest.raises(NotImplementedError, match="no such instruction"):
        pallas_kernels.dcnv3(*arrays, **GEOMETRY, groups=2, offset_scale=1.0, implementation="gpu")


def test_a_deterministic_gradient_has_no_atomics(platform):
    def deterministic(*inputs):
        return pallas_kernels.dcnv3(
            *inputs, **GEOMETRY, groups=2, offset_scale=1.0, deterministic=True
        )

    text = lowered(deterministic, CALLS["dcnv3"][1], jnp.float32, LOWERED[platform])
    assert MARKS[platform] in text
    assert "atomic" not in text
