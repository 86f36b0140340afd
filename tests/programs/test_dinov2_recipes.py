"""Recipes of DINOv2 have the settings of the recorded transformers and start from their files."""

import json
import math

import pytest

from converters import conversion_plan
from jaxseg import parameter_paths
from jaxseg.config import load_config
from jaxseg.inference.image_sizes import check_image_sizes
from jaxseg.models.segmentation_model import build_model, variable_shapes
from jaxseg.recipes.dinov2 import BACKBONES
from jaxseg.zoo import backbones
from support.reference_files import REFERENCE

pytestmark = pytest.mark.reference

MANIFESTS = {
    path.stem.removeprefix("dinov2_"): path
    for path in (REFERENCE / "dinov2" / "manifests").glob("*.json")
}
ROWS = {row.name: row for row in backbones.BACKBONES}


def test_every_recorded_transformer_has_a_recipe():
    assert BACKBONES.keys() == MANIFESTS.keys()


@pytest.mark.parametrize("name", BACKBONES)
def test_the_recipe_has_the_settings_of_the_recording_and_starts_from_its_file(name):
    manifest = json.loads(MANIFESTS[name].read_text())
    original = manifest["resolved"]
    config = load_config(f"configs/ade20k.py:linear_dinov2_{name}", {"model.dtype": "float32"})
    check_image_sizes(config)
    ours = config.model.backbone
    same = {"embed_dim": "embed_dim", "depth": "depth", "num_heads": "num_heads", "ffn": "ffn"}
    same |= {"storage_tokens": "num_register_tokens"}
    assert {key: ours[key] for key in same} == {key: original[same[key]] for key in same}
    assert config.data.crop_hw == config.eval.crop_hw == (original["img_size"],) * 2
    assert ROWS[config.init.removeprefix("zoo:")].url.endswith(f"/{original['url_file']}")

    wanted = parameter_paths.shapes(variable_shapes(build_model(config.model)))
    tensors = {key: tuple(shape) for key, (_, *shape) in manifest["state_dict"].items()}
    plan = conversion_plan.make_plan(tensors, wanted, source=name, model="linear")
    of_backbone = {path for path in wanted if path.partition("/")[2].startswith("backbone/")}
    assert set(plan.used.values()) == of_backbone
    assert plan.ignored == {"mask_token": "prediction of masked patches"}
    # The token that is ignored is as wide as a patch's.
    counted = sum(math.prod(wanted[path]) for path in of_backbone) + ours.embed_dim
    assert counted == manifest["num_params"]
