"""Every recorded module of the InternImage family: values, gradients, batch statistics."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from converters.rules import to_channels_last, to_path, to_variables
from jaxseg.losses.cross_entropy import cross_entropy
from jaxseg.models.backbones import internimage
from jaxseg.models.heads.segformer_head import SegformerHead
from jaxseg.models.heads.uper_head import FCNHead, UPerHead
from jaxseg.ops import convolution, resize
from support.reference_files import Recording, recordings, relative_error

pytestmark = pytest.mark.reference

# Float32 rounding of sums in another order; the originals differ as much from their own float64.
VALUES, GRADIENTS = 1e-5, 1e-4


def to_last(x):
    return np.moveaxis(x, 1, -1)


def to_first(x):
    return jnp.moveaxis(x, -1, 1)


def options(hparams, **renamed):
    """The recorded settings that jaxseg's modules take by the same name."""
    known = inspect.signature(internimage.InternImage).parameters
    chosen = {k: v for k, v in hparams.items() if k in known and k not in ("groups", "channels")}
    return chosen | {k: hparams[v] for k, v in renamed.items() if v in hparams}


def layer(hparams):
    chosen = options(hparams)
    return internimage.InternImageLayer(hparams["groups"], **chosen)


def backbone(hparams):
    chosen = options(hparams, level2_post_norm_after="level2_post_norm_block_ids")
    return internimage.InternImage(hparams["channels"], groups=hparams["groups"], **chosen)


def dcn_module(hparams):
    names = ("offset_scale", "kernel_size", "dw_kernel_size", "center_feature_scale")
    return internimage.DCNv3(hparams["group"], **{k: hparams[k] for k in names})


def head(hparams):
    common = {"num_classes": hparams["num_classes"], "channels": hparams["channels"]}
    if hparams["kind"] == "fcn":
        return FCNHead(**common, dropout=0.0)
    if hparams["kind"] == "uper":
        return UPerHead(**common, pool_scales=tuple(hparams["pool_scales"]), dropout=0.0)
    return SegformerHead(**common, dropout=0.0)


# Leading part of the file name -> (module, inputs are NCHW, outputs are NCHW, takes `train`).
MODULES = {
    "dcnv3_module": (dcn_module, False, False, False),
    "downsample_layer": (lambda _: internimage.Downsample(), False, False, False),
    "internimage_layer": (layer, False, False, True),
    "internimage_tiny": (backbone, True, True, True),
    "mlp_layer": (lambda h: internimage.MLP(h["hidden"]), False, False, False),
    "stem_layer": (lambda h: internimage.Stem(h["out_chans"]), True, False, False),
    "fcn_head": (head, True, True, True),
    "segformer_head": (head, True, True, True),
    "uper_head": (head, True, True, True),
}


def check_module(recording, make, nchw_in, nchw_out, takes_train):
    module, hparams = make(recording.hparams), recording.hparams
    variables = to_variables(recording.params())
    inputs = recording.group("inputs/")
    outputs, cotangents = recording.group("outputs/"), recording.group("cotangents/")
    train = hparams.get("train", False)

    def run(params, values):
        values = [jnp.moveaxis(v, 1, -1) if nchw_in else v for v in values.values()]
        arguments = [values if "kind" in hparams else values[0]] + [train] * takes_train
        result, updated = module.apply(
            {**variables, "params": params}, *arguments, mutable=["batch_stats"]
        )
        results = result if isinstance(result, list) else [result]
        return [to_first(r) if nchw_out else r for r in results], updated

    def scalar(params, values):
        results, updated = run(params, values)
        pairs = zip(results, cotangents.values(), strict=True)
        return sum(jnp.sum(r * c) for r, c in pairs), (results, updated)

    gradient = jax.jit(jax.grad(scalar, argnums=(0, 1), has_aux=True))
    (param_gradients, input_gradients), (results, updated) = gradient(variables["params"], inputs)

    for result, expected in zip(results, outputs.values(), strict=True):
        assert relative_error(result, expected) < VALUES
    for name, expected in recording.group("grads/inputs/").items():
        assert relative_error(input_gradients[name], expected) < GRADIENTS, name
    paths = traverse_util.flatten_dict({"params": param_gradients}, sep="/")
    recorded = recording.group("grads/params/")
    assert len(recorded) == len(paths)
    for name, expected in recorded.items():
        path = to_path(name, expected.ndim)
        assert relative_error(paths[path], to_channels_last(expected, path)) < GRADIENTS, name
    statistics = traverse_util.flatten_dict(updated, sep="/")
    for name, expected in recording.group("after/").items():
        if not name.endswith("num_batches_tracked"):
            assert relative_error(statistics[to_path(name, 1)], expected) < VALUES, name


def check_resampling(recording, function):
    """`function(recording, case)` gives the resampling of one numbered case, channels last."""
    for case in recording.group("inputs/"):
        run = jax.jit(
            lambda x, case=case: to_first(function(recording, case)(jnp.moveaxis(x, 1, -1)))
        )
        output, transpose = jax.vjp(run, recording[f"inputs/{case}"])
        assert relative_error(output, recording[f"outputs/{case}"]) < VALUES, case
        (gradient,) = transpose(jnp.asarray(recording[f"cotangents/{case}"]))
        assert relative_error(gradient, recording[f"grads/inputs/{case}"]) < GRADIENTS, case


def check_adaptive_avg_pool(recording):
    check_resampling(
        recording,
        lambda r, case: lambda x: convolution.adaptive_avg_pool(x, int(r[f"size/{case}"])),
    )


def check_resize_bilinear(recording):
    check_resampling(
        recording,
        lambda r, case: lambda x: resize.resize_bilinear(x, r[f"outputs/{case}"].shape[2:]),
    )


def check_ce_loss(recording):
    weight = recording.hparams["loss_weight"]
    logits = to_last(recording["inputs/logits"])
    labels = recording["inputs/label"][:, 0].astype(np.int32)
    loss, gradient = jax.value_and_grad(lambda x: weight * cross_entropy(x, labels))(logits)
    assert relative_error(loss, recording["outputs/loss_ce"]) < VALUES
    expected = to_last(recording["grads/inputs/logits"])
    cotangent = float(recording["cotangents/loss_ce"])
    assert relative_error(gradient * cotangent, expected) < GRADIENTS


CHECKS = {
    "adaptive_avg_pool": check_adaptive_avg_pool,
    "ce_loss": check_ce_loss,
    "resize_bilinear": check_resize_bilinear,
    **{
        name: lambda recording, spec=spec: check_module(recording, *spec)
        for name, spec in MODULES.items()
    },
}


# `test_modes` records inference; its whole-image cases are in test_inference.py.
OTHERS = ("test_modes", "dcnv3_core")  # with tests of their own
FILES = [path for path in recordings("internimage/modules") if not path.stem.startswith(OTHERS)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_module_equals_the_reference(path):
    leading = max((name for name in CHECKS if path.stem.startswith(name)), key=len, default=None)
    assert leading, f"{path.name}: nothing here knows how to check it"
    CHECKS[leading](Recording(path))
