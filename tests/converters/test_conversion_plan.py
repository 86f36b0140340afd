"""What becomes of every tensor of a file: used, or named with a reason; none in silence."""

import json

import pytest

from converters import conversion_plan, rules
from jaxseg import parameter_paths
from jaxseg.config import load_config
from jaxseg.errors import CheckpointError
from jaxseg.models.segmentation_model import build_model, variable_shapes
from support.reference_files import REFERENCE
from support.tiny import tiny_config

PRETRAINED = sorted((REFERENCE / "internimage" / "pretrained").glob("*.json"))


def wanted_by(config):
    return parameter_paths.shapes(variable_shapes(build_model(config.model)))


def tensors_of(wanted):
    return {rules.to_name(p): rules.channels_first_shape(s, p) for p, s in wanted.items()}


WANTED = wanted_by(tiny_config())
TENSORS = tensors_of(WANTED)


def plan(tensors, wanted=WANTED, **options):
    return conversion_plan.make_plan(tensors, wanted, source="file.pth", model="tiny", **options)


def test_every_tensor_is_used_and_counters_are_ignored():
    counter = "decode_head.bottleneck.bn.num_batches_tracked"
    found = plan(TENSORS | {counter: ()})
    assert found.used == {rules.to_name(path): path for path in WANTED}
    assert found.ignored == {counter: "counters of batch norm"}
    assert (found.derived, found.fresh) == ({}, {})


def test_unknown_and_missing_tensors_are_named_with_the_nearest():
    name = "decode_head.lateral_convs.0.conv.weight"
    tensors = {k: v for k, v in TENSORS.items() if k != name}
    misspelt = "decode_head.lateral_convs.0.convs.weight"
    tensors[misspelt] = TENSORS[name]
    with pytest.raises(CheckpointError) as error:
        plan(tensors)
    message = str(error.value)
    assert "file.pth does not fit tiny" in message
    assert f"1 in the file only:\n    {misspelt} (nearest: {name}" in message
    assert f"1 in the model only:\n    {name} (nearest: {misspelt}" in message


def test_other_shapes_are_named():
    with pytest.raises(CheckpointError, match=r"patch_embed.conv1.bias: \[5\] in the file, \[4\]"):
        plan(TENSORS | {"backbone.patch_embed.conv1.bias": (5,)})


def test_file_of_another_model_is_called_so():
    other = tiny_config(**{"model.backbone.channels": 16})
    with pytest.raises(CheckpointError, match=r"file\.pth is of another model than tiny"):
        plan(tensors_of(wanted_by(other)))


def test_a_name_does_not_take_the_place_of_another():
    # Both would become backbone/patch_embed/norm1.
    with pytest.raises(CheckpointError, match=r"in the file only:\n.*norm1\.0\.weight"):
        plan(TENSORS | {"backbone.patch_embed.norm1.0.weight": (4,)})


def test_another_number_of_classes_is_refused_and_how_to_train_it_is_said():
    wanted = wanted_by(tiny_config(**{"model.decode_head.num_classes": 7}))
    with pytest.raises(CheckpointError, match=r"--config\.init=file\.pth"):
        plan(TENSORS, wanted)


def test_transfer_keeps_the_classifier_fresh_for_another_number_of_classes():
    wanted = wanted_by(tiny_config(**{"model.decode_head.num_classes": 7}))
    found = plan(TENSORS, wanted, transfer=True)
    classifier = {"params/decode_head/conv_seg/kernel", "params/decode_head/conv_seg/bias"}
    assert found.fresh == dict.fromkeys(classifier, "another number of classes")
    assert set(found.used.values()) == wanted.keys() - classifier
    assert set(found.ignored) == {rules.to_name(path) for path in classifier}


def test_transfer_keeps_a_head_of_another_kind_fresh():
    head = {"kind": "segformer", "num_classes": 19, "channels": 16}
    config = tiny_config()
    config.model.decode_head, config.model.auxiliary_head = head, None
    wanted = wanted_by(config)
    found = plan(TENSORS, wanted, transfer=True)
    assert set(found.used.values()) == {p for p in wanted if p.startswith("params/backbone/")}
    assert {path.split("/")[1] for path in found.fresh} == {"decode_head"}
    assert set(found.ignored.values()) == {
        "decode_head not taken over",
        "auxiliary_head not taken over",
    }


def test_transfer_refuses_another_backbone():
    deeper = tiny_config(**{"model.backbone.depths": (2, 1, 1, 1)})
    with pytest.raises(CheckpointError, match="in the model only"):
        plan(TENSORS, wanted_by(deeper), transfer=True)
    with pytest.raises(CheckpointError, match="in the file only"):
        plan(tensors_of(wanted_by(deeper)), transfer=True)


@pytest.mark.reference
@pytest.mark.parametrize("path", PRETRAINED, ids=lambda path: path.stem)
def test_pretrained_backbone_gives_the_whole_backbone(path):
    recorded = json.loads(path.read_text())
    size = path.stem.split("_")[1]
    wanted = wanted_by(load_config(f"configs/ade20k.py:upernet_internimage_{size}"))
    tensors = {name: tuple(shape) for name, (_, *shape) in recorded["state_dict"].items()}
    found = plan(tensors, wanted)
    backbone = {path for path in wanted if path.startswith("params/backbone/")}
    # The classification T is the one without layer scale.
    layer_scale = {path for path in backbone if path.endswith(("/gamma1", "/gamma2"))}
    assert set(found.derived) == (layer_scale if size == "t" else set())
    assert set(found.used.values()) == backbone - set(found.derived)
    assert set(found.fresh) == wanted.keys() - backbone
    assert set(found.ignored.values()) <= {
        "classifier of the pre-training",
        "counters of batch norm",
    }
    assert len(found.used) + len(found.ignored) == len(tensors)
