"""Every tensor of the published ViT-Adapters has its place in the model here, and back.

By names and shapes alone, with the options that the original's settings ask for.
"""

import functools
import json
import math

import pytest
from reference_files import REFERENCE

from converters import rules
from jaxseg import paths
from jaxseg.models import segmentor

pytestmark = pytest.mark.reference
MANIFESTS = sorted((REFERENCE / "vit_adapter" / "manifests").glob("upernet_*.json"))

PATCH = 16
KINDS = {
    "ViTAdapter": "vit_adapter",
    "UniPerceiverAdapter": "uniperceiver_adapter",
    "BEiTAdapter": "beit_adapter",
    "BEiTBaseline": "beit",
}
# What may be in the original's settings, and what it is called here.
OPTIONS = {
    "embed_dim": "embed_dim",
    "depth": "depth",
    "num_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "drop_path_rate": "drop_path",
    "init_values": "layer_scale",
    "out_indices": "out_indices",
    "interaction_indexes": "interaction_indexes",
    "deform_num_heads": "deform_num_heads",
    "deform_ratio": "deform_ratio",
    "conv_inplane": "conv_inplane",
    "n_points": "num_points",
    "cffn_ratio": "ffn_ratio",
    "add_vit_feature": "add_vit_feature",
    "with_cp": "remat",
}


def backbone_of(original):
    """The options here of an original backbone."""
    options = {ours: original[theirs] for theirs, ours in OPTIONS.items() if theirs in original}
    options["kind"] = KINDS[original["type"]]
    if options["kind"].startswith("beit"):
        options["window"] = (original["img_size"] // PATCH,) * 2
    else:
        options["pretrain_grid"] = original.get("pretrain_size", 224) // PATCH
    if not original.get("with_cffn", True):
        options["ffn_ratio"] = None
    if not original.get("use_extra_extractor", True):
        options["extra_extractors"] = 0
    return options


def head_of(kind, original):
    settings = {name: original[name] for name in ("num_classes", "channels")}
    return {"kind": kind, **settings, "dropout": original["dropout_ratio"]}


@functools.cache
def shapes_of(described):
    """Shapes of the variables of a model by path; several originals share a model."""
    return paths.shapes(segmentor.shapes(segmentor.build(json.loads(described))))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_every_tensor_of_the_original_has_its_place(path):
    manifest = json.loads(path.read_text())
    original = manifest["resolved"]["model"]
    model = {
        "dtype": "float32",
        "backbone": backbone_of(original["backbone"]),
        "decode_head": head_of("uper", original["decode_head"]),
        "auxiliary_head": head_of("fcn", original["auxiliary_head"]),
    }
    variables = shapes_of(json.dumps(model, sort_keys=True))
    computed = (rules.COUNTER, "relative_position_index")
    recorded = {
        name: tuple(shape)
        for name, (_, *shape) in manifest["state_dict"].items()
        if not name.endswith(computed)
    }
    names = {rules.to_name(p): rules.channels_first_shape(s, p) for p, s in variables.items()}
    assert names == recorded
    for name, shape in recorded.items():
        place = rules.to_path(name, len(shape))
        assert rules.to_name(place) == name
        assert variables[place] == rules.channels_last_shape(shape, place)
    parameters = [math.prod(s) for p, s in variables.items() if p.startswith("params/")]
    assert sum(parameters) == manifest["num_params"]
