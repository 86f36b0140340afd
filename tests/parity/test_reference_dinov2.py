"""DINOv2's transformers against their recordings, and the names and shapes of all of them."""

import json

import jax
import numpy as np
import pytest
from flax import linen as nn

from converters import rules
from converters.conversion_plan import make_plan
from jaxseg import parameter_paths
from jaxseg.models.backbones.dinov2 import DINOv2, resize_positions
from support.recorded_modules import GRADIENTS, VALUES, check_module, first, last
from support.reference_files import REFERENCE, Recording, recordings, relative_error

pytestmark = pytest.mark.reference

FILES = [p for p in recordings("dinov2/modules") if p.stem.startswith("DinoVisionTransformer")]
MANIFESTS = sorted((REFERENCE / "dinov2" / "manifests").glob("*.json"))


class AllTokens(DINOv2):
    """Also with the class token, which heads do not take."""

    @nn.compact
    def __call__(self, images):
        return self.intermediate(images, self.out_indices, False)


def transformer_of(settings):
    return {
        "embed_dim": settings["embed_dim"],
        "depth": settings["depth"],
        "num_heads": settings["num_heads"],
        "ffn": settings.get("ffn_layer", settings.get("ffn")),
        "storage_tokens": settings["num_register_tokens"],
        "pretrain_grid": settings["img_size"] // settings["patch_size"],
        "patch": settings["patch_size"],
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_transformer_equals_the_reference(path):
    def compute(meta, run, inputs):
        fields = transformer_of(meta) | {"ffn_ratio": meta["mlp_ratio"]}
        outputs = {}
        for i, tokens in enumerate(
            run(AllTokens(**fields, out_indices=meta["layers"]), last(inputs["x"]))
        ):
            outputs |= {f"f{i}": first(tokens.patches), f"cls{i}": tokens.class_token}
        return outputs

    check_module(Recording(path), compute)


def test_positions_are_resized_as_in_the_reference():
    recording = Recording(REFERENCE / "dinov2" / "modules" / "pos_embed_interpolation.npz")
    for case, settings in enumerate(recording.json("__index__")):
        group = recording.group(f"{case}/")
        _, *hw = group["size"].tolist()

        def positions(table, hw=hw, smooth=settings["antialias"]):
            patches = resize_positions(table[:, 1:], hw, smooth)
            return jax.numpy.concatenate([table[:, :1], patches.reshape(1, -1, table.shape[2])], 1)

        output, transpose = jax.vjp(positions, group["inputs/pos_embed"])
        assert relative_error(output, group["outputs/out"]) < VALUES
        if "cotangents/out" in group:
            (gradient,) = transpose(jax.numpy.asarray(group["cotangents/out"]))
            assert relative_error(gradient, group["grads/inputs/pos_embed"]) < GRADIENTS


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_every_tensor_of_a_published_transformer_has_its_place(path):
    manifest = json.loads(path.read_text())
    resolved = manifest["resolved"]
    module = DINOv2(**transformer_of(resolved), out_indices=(resolved["depth"] - 1,))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jax.numpy.zeros((1, 56, 56, 3))))
    found = {
        rules.to_name(path): list(rules.channels_first_shape(shape, path))
        for path, shape in parameter_paths.shapes(shapes).items()
    }
    recorded = {
        name: shape for name, (_, *shape) in manifest["state_dict"].items() if name != "mask_token"
    }
    assert found == recorded
    # As a start of training, all but the token of the pre-training is taken.
    wanted = {
        path.replace("/", "/backbone/", 1): shape
        for path, shape in parameter_paths.shapes(shapes).items()
    }
    tensors = {name: tuple(shape) for name, (_, *shape) in manifest["state_dict"].items()}
    plan = make_plan(tensors, wanted, source=path.stem, model="DINOv2")
    assert set(plan.used.values()) == set(wanted)
    assert plan.ignored == {"mask_token": "prediction of masked patches"}
    total = sum(map(np.prod, found.values())) + resolved["embed_dim"]
    assert total == manifest["num_params"]
