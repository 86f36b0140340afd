"""The linear head against the recorded numbers of DINOv3's, values and gradients."""

import jax
import jax.numpy as jnp
import pytest

from jaxseg.models.heads.linear_head import LinearHead
from jaxseg.ops.resize import resize_bilinear
from support.reference_files import Recording, recordings, relative_error

pytestmark = pytest.mark.reference

# Float32 rounding of sums in another order.
VALUES, GRADIENTS = 1e-5, 1e-4
NAMES = {"batchnorm_layer": "bn", "conv": "conv_seg"}


def to_last(x):
    return jnp.moveaxis(x, 1, -1)


@pytest.mark.parametrize("path", recordings("dinov3/modules"), ids=lambda path: path.stem)
def test_head_equals_the_reference(path):
    recording = Recording(path)
    meta, stored = recording.json("meta"), recording.params()
    maps = [recording[f"inputs/f{i}"] for i in range(len(meta["in_channels"]))]
    params = {
        "bn": {"scale": stored["batchnorm_layer.weight"], "bias": stored["batchnorm_layer.bias"]},
        "conv_seg": {
            "kernel": stored["conv.weight"].transpose(2, 3, 1, 0),
            "bias": stored["conv.bias"],
        },
    }
    statistics = {"mean": "batchnorm_layer.running_mean", "var": "batchnorm_layer.running_var"}
    batch_stats = {"bn": {key: stored[name] for key, name in statistics.items()}}
    head = LinearHead(meta["num_classes"], tuple(range(len(maps))), dropout=0.0)

    def run(params, maps):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updated = head.apply(
            variables, [to_last(x) for x in maps], meta["train"], mutable=["batch_stats"]
        )
        results = {"out": jnp.moveaxis(logits, -1, 1)}
        if meta["rescale_to"]:
            results["predict"] = jnp.moveaxis(resize_bilinear(logits, meta["rescale_to"]), -1, 1)
        total = sum(jnp.sum(x * recording[f"cotangents/{name}"]) for name, x in results.items())
        return total, (results, updated)

    gradient = jax.jit(jax.grad(run, argnums=(0, 1), has_aux=True))
    (of_params, of_maps), (results, updated) = gradient(params, maps)
    for name, result in results.items():
        assert relative_error(result, recording[f"outputs/{name}"]) < VALUES
    for i, found in enumerate(of_maps):
        assert relative_error(found, recording[f"grads/inputs/f{i}"]) < GRADIENTS
    for name, expected in recording.group("grads/params/").items():
        module, leaf = name.split(".")
        found = of_params[NAMES[module]]
        if module == "conv" and leaf == "weight":
            assert relative_error(found["kernel"], expected.transpose(2, 3, 1, 0)) < GRADIENTS
        else:
            assert (
                relative_error(found["scale" if leaf == "weight" else leaf], expected) < GRADIENTS
            )
    for key, name in statistics.items():
        expected = recording.arrays.get(f"updated/{name}", stored[name])
        assert relative_error(updated["batch_stats"]["bn"][key], expected) < VALUES
