"""Learning rate and decay of every parameter, as the originals sorted them into groups."""

import json

import pytest
from ml_collections import ConfigDict

from converters.rules import to_path
from jaxseg.errors import ConfigError
from jaxseg.models.backbones import BACKBONES
from jaxseg.training import parameter_groups
from support.reference_files import REFERENCE

TABLES = sorted(
    path for path in REFERENCE.glob("*/optim/*.json") if not path.stem.endswith("lr_schedule")
)
KINDS = {"InternImage": "internimage", "ViTAdapter": "vit_adapter", "BEiTAdapter": "beit_adapter"}


def config_of(rules):
    """`config.optim` for the original's rules, as far as groups go."""
    custom_keys = tuple(
        (part, factors.get("lr_mult", 1.0), factors.get("decay_mult", 1.0))
        for part, factors in rules.get("custom_keys", {}).items()
    )
    layer_decay = rules.get("layer_decay_rate", 1.0)
    return ConfigDict({"layer_decay": layer_decay, "custom_keys": custom_keys})


def backbone_of(original):
    depth = "depths" if "depths" in original else "depth"
    return ConfigDict({"kind": KINDS[original["type"]], depth: original[depth]})


@pytest.mark.reference
@pytest.mark.parametrize("path", TABLES, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_rate_and_decay_of_every_parameter_are_those_of_the_original(path):
    recorded = json.loads(path.read_text())
    manifest = json.loads((path.parents[1] / "manifests" / path.name).read_text())
    base = recorded["optimizer"]
    config = config_of(recorded.get("paramwise_cfg") or base["paramwise_cfg"])
    backbone = backbone_of(manifest["resolved"]["model"]["backbone"])
    group_of = parameter_groups.make_group_fn(config, backbone)
    for name, expected in recorded["params"].items():
        ndim = len(manifest["state_dict"][name]) - 1  # after the type
        group = group_of(to_path(name, ndim).removeprefix("params/"), ndim)
        scale = expected["lr"] / base["lr"] if "lr" in expected else expected["lr_scale"]
        assert group.learning_rate == pytest.approx(scale, rel=1e-6), name
        assert group.weight_decay * base["weight_decay"] == expected["weight_decay"], name


@pytest.mark.reference
def test_tables_of_both_families_are_there():
    assert {path.parts[-3] for path in TABLES} == {"internimage", "vit_adapter"}


def test_uniperceiver_has_names_of_its_own():
    backbone = ConfigDict({"kind": "uniperceiver_adapter", "depth": 24})
    group_of = parameter_groups.make_group_fn(config_of({"layer_decay_rate": 0.8}), backbone)
    for path, layer in (
        ("visual_embed/patch_embed/spatial_pos_embed/kernel", 0),
        ("layers_0/linear1/kernel", 1),
        ("layers_23/self_attn/out_proj/kernel", 24),
        ("interactions_0/extractor/ffn/fc1/kernel", 25),
    ):
        assert group_of(f"backbone/{path}", 2) == (pytest.approx(0.8 ** (25 - layer)), 1.0), path


def test_biases_do_not_decay_whatever_their_shape():
    backbone = ConfigDict({"kind": "vit_adapter", "depth": 12})
    group_of = parameter_groups.make_group_fn(config_of({}), backbone)
    assert group_of("decode_head/attention/query/bias", 2).weight_decay == 0
    assert group_of("backbone/blocks_0/attn/relative_position_bias_table", 2).weight_decay == 1


def test_every_backbone_has_its_rules():
    assert set(BACKBONES) <= set(parameter_groups.FAMILIES)


def test_longest_name_that_is_found_counts_then_the_first_of_the_alphabet():
    rules = {"norm": {"decay_mult": 0.0}, "backbone": {"lr_mult": 0.1}, "head": {"lr_mult": 10.0}}
    group_of = parameter_groups.make_group_fn(config_of({"custom_keys": rules}), ConfigDict())
    assert group_of("backbone/norm1/scale", 1) == (0.1, 1.0)
    assert group_of("decode_head/norm/scale", 1) == (10.0, 1.0)
    assert group_of("neck/norm/scale", 1) == (1.0, 0.0)
    assert group_of("neck/kernel", 4) == (1.0, 1.0)


def test_rates_by_layer_and_by_name_exclude_each_other():
    rules = {"layer_decay_rate": 0.9, "custom_keys": {"head": {"lr_mult": 10.0}}}
    with pytest.raises(ConfigError, match="layer_decay"):
        parameter_groups.make_group_fn(config_of(rules), ConfigDict())


@pytest.mark.parametrize(
    "backbone",
    [{"kind": "internimage", "depths": (1, 1, 1, 1)}, {"kind": "beit_adapter", "depth": 4}],
    ids=lambda backbone: backbone["kind"],
)
def test_parameter_without_a_layer_is_named(backbone):
    group_of = parameter_groups.make_group_fn(config_of({}), ConfigDict(backbone))
    with pytest.raises(ValueError, match="neck/kernel"):
        group_of("neck/kernel", 4)
