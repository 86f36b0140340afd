"""What stays fresh when a model starts from another's weights."""

import pytest

from jaxseg import parameter_paths
from jaxseg.models.segmentation_model import build_model, variable_shapes
from jaxseg.models.transfer import fresh_variables
from support.small_mask2former import mask2former_config
from support.tiny import tiny_config

CLASSIFIERS = {
    tiny_config: {
        f"params/{head}/conv_seg/{name}"
        for head in ("decode_head", "auxiliary_head")
        for name in ("kernel", "bias")
    },
    # As mmcv's non-strict loading, by which the original starts from another dataset: the pixel
    # decoder, the queries and the transformer are those of the source.
    mask2former_config: {f"params/decode_head/cls_embed/{name}" for name in ("kernel", "bias")},
}


def shapes_of(config, num_classes):
    config = config().copy_and_resolve_references()
    for head in ("decode_head", "auxiliary_head"):
        if config.model.get(head):
            config.model[head].num_classes = num_classes
    return parameter_paths.shapes(variable_shapes(build_model(config.model)))


@pytest.mark.parametrize("config", CLASSIFIERS, ids=lambda config: config.__name__)
def test_another_number_of_classes_leaves_the_classifiers_fresh(config):
    fresh = fresh_variables(shapes_of(config, 19), shapes_of(config, 7))
    assert set(fresh) == CLASSIFIERS[config]
    assert set(fresh.values()) == {"another number of classes"}
