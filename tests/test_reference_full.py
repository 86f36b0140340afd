"""Full-size models against the recorded features, logits and class maps (`make test-full`)."""

import inspect
import json

import jax
import numpy as np
import pytest
from flax import traverse_util
from reference.fill import fill
from reference_files import REFERENCE, Recording, recordings

from converters.rules import from_state_dict
from jaxseg import inference
from jaxseg.models import segmentor
from jaxseg.models.intern_image import InternImage

pytestmark = pytest.mark.reference

# The original's float32 differs from its float64 by 3e-5 (features) and 1.5e-5 (logits) absolute.
TOLERANCE = 1e-4
HEADS = {"UPerHead": "uper", "SegformerHead": "segformer", "FCNHead": "fcn"}


def manifest_of(path):
    name = path.stem.split("__")[0]  # a second size of the same model follows "__"
    return json.loads((REFERENCE / "internimage" / "manifests" / f"{name}.json").read_text())


def model_config(resolved):
    """The settings of the original as `config.model`."""
    known = inspect.signature(InternImage).parameters
    backbone = {k: v for k, v in resolved["backbone"].items() if k in known}
    blocks = resolved["backbone"].get("level2_post_norm_block_ids", ())

    def head(part):
        kept = {k: part[k] for k in ("channels", "num_classes")}
        return {"kind": HEADS[part["type"]], **kept}

    auxiliary = resolved.get("auxiliary_head")
    return {
        "dtype": "float32",
        "backbone": {"kind": "intern_image", **backbone, "level2_post_norm_after": blocks},
        "decode_head": head(resolved["decode_head"]),
        "auxiliary_head": head(auxiliary) if auxiliary else None,
    }


def filled(manifest):
    """Every tensor of the original made from its name, as jaxseg's variables."""
    return from_state_dict({k: fill(k, shape) for k, (_, *shape) in manifest["state_dict"].items()})


def of_known_heads(paths):
    """Mask2Former has tests of its own."""
    return sorted(path for path in paths if not path.stem.startswith("mask2former"))


MANIFESTS = of_known_heads((REFERENCE / "internimage" / "manifests").glob("*.json"))
RECORDINGS = of_known_heads(recordings("internimage/full"))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_every_tensor_of_the_original_has_its_place(path):
    """By shapes alone: the full size builds, and names and shapes match one to one."""
    manifest = json.loads(path.read_text())
    model = segmentor.build(model_config(manifest["resolved"]["model"]))
    expected = jax.eval_shape(lambda: segmentor.init(model, jax.random.key(0), (64, 64)))
    tensors = manifest["state_dict"]
    # Zeros of no memory, to be renamed and transposed like the tensors themselves.
    empty = {k: np.broadcast_to(np.float32(0), shape) for k, (_, *shape) in tensors.items()}
    shapes = jax.tree.map(np.shape, traverse_util.flatten_dict(from_state_dict(empty), sep="/"))
    assert shapes == jax.tree.map(np.shape, traverse_util.flatten_dict(expected, sep="/"))
    assert sum(x.size for x in jax.tree.leaves(expected["params"])) == manifest["num_params"]


@pytest.mark.full
@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_full_size_model_equals_the_reference(path):
    recording, manifest = Recording(path), manifest_of(path)
    model = segmentor.build(model_config(manifest["resolved"]["model"]))
    variables = filled(manifest)
    shape = tuple(recording["input_shape"])
    rng = np.random.default_rng(int(recording["input_seed"]))
    images = np.moveaxis(rng.standard_normal(shape).astype(np.float32), 1, -1)

    @jax.jit
    def run(variables, images):
        features, logits = model.apply(
            variables, images, method=lambda m, x: (f := m.backbone(x), m.decode_head(f, False))
        )
        return features, logits, inference.whole_scores(lambda _: logits, images, shape[2:])

    features, logits, output = run(variables, images)
    named = {f"backbone/{i}": feature for i, feature in enumerate(features)}
    for name, value in (named | {"logits": logits, "output": output}).items():
        value = np.moveaxis(np.asarray(value), -1, 1)
        assert value.shape == tuple(recording[f"{name}/shape"])
        field = "values_f64" if f"{name}/values_f64" in recording else "values"
        expected = recording[f"{name}/{field}"]
        difference = np.max(np.abs(value.ravel()[recording[f"{name}/index"]] - expected))
        assert difference < TOLERANCE * recording[f"{name}/absmax"], name

    classes = np.argmax(np.asarray(output), axis=-1).ravel()[recording["argmax/index"]]
    clear = recording["argmax/margin"] > TOLERANCE * recording["output/absmax"]
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(classes[clear], recording["argmax/values"][clear])
