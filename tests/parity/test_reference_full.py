"""Full-size models against the recorded features, logits and class maps (`make test-full`)."""

import functools

import jax
import numpy as np
import pytest

from converters import recording, torch_weights, verify
from jaxseg import parameter_paths
from jaxseg.config import load_config
from jaxseg.models.heads.mask2former_head import MaskPredictions
from jaxseg.models.segmentation_model import build_model
from jaxseg.ops.position_tables import resize_relative
from jaxseg.recipes.dinov3 import READ_AFTER
from support.published import config_of, name_of
from support.reference_files import Recording, recordings, relative_error
from support.undecided_cells import decided_as_recorded

RECORDINGS = [
    path for folder in ("internimage/full", "vit_adapter/full") for path in recordings(folder)
]


@pytest.mark.reference
@pytest.mark.full
@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_full_size_model_equals_the_reference(path, monkeypatch):
    config, recorded = config_of(name_of(path)), recording.read_recording(path)
    variables = torch_weights.from_state_dict(verify.filled_state_dict(config), config)
    comparison = verify.compare(config, variables, recorded)
    assert comparison.clear_agreement == 1, comparison.table()
    errors = {name: relative for name, (_, relative) in comparison.errors.items()}
    if path.stem.startswith("mask2former") and max(errors.values()) > verify.TOLERANCE:
        decided, cells = decided_as_recorded(config, variables, recorded, monkeypatch)
        print("decided as recorded:", cells)
        errors |= decided
    assert max(errors.values()) <= verify.TOLERANCE, errors
    # These weights give Mask2Former's queries much the same classes, so that many pixels are close.
    assert comparison.clear > (0.5 if path.stem.startswith("mask2former") else 0.9)


@functools.cache
def read_dinov3(path):
    """The config here of a recorded segmentor of DINOv3, and the recording."""
    _, backbone, _, head = name_of(path).split("_")
    kind = {"m2f": "mask2former", "linear": "linear"}[head]
    config = load_config(f"configs/ade20k.py:{kind}_dinov3_{backbone}", {"model.dtype": "float32"})
    if head == "linear":  # four maps were recorded, of which the head takes the last one
        config.model.backbone.out_indices = READ_AFTER[config.model.backbone.depth]
        config.model.decode_head.in_index = (3,)
    return config, Recording(path)


@pytest.mark.reference
@pytest.mark.full
@pytest.mark.parametrize("path", recordings("dinov3/full"), ids=lambda path: path.stem)
def test_full_size_dinov3_equals_the_reference(path, monkeypatch):
    config, recording_of_first = read_dinov3(path)
    recorded = recording.read_recording(path)
    variables = torch_weights.from_state_dict(verify.filled_state_dict(config), config)
    comparison = verify.compare(config, variables, recorded)
    print(comparison.table())
    assert comparison.clear_agreement == 1, comparison.table()
    errors = {name: relative for name, (_, relative) in comparison.errors.items()}
    if "m2f" in path.stem and max(errors.values()) > verify.TOLERANCE:
        decided, cells = decided_as_recorded(config, variables, recorded, monkeypatch)
        print("decided as recorded:", cells)
        errors |= decided
    assert max(errors.values()) <= verify.TOLERANCE, errors
    if "semantic0/values" not in recording_of_first:
        return
    # With these weights, the queries of the last prediction have one class, but not of the first.
    outputs = verify.run(build_model(config.model), variables, recorded.images)
    first = MaskPredictions(outputs["class_logits/0"][None], outputs["mask_logits/0"][None])
    scores = np.moveaxis(np.asarray(first.semantic(recorded.images.shape[1:3])), -1, 1)
    samples = recording_of_first.group("semantic0/")
    found = scores.ravel()[samples["idx"]]
    assert relative_error(found, samples["values"]) < verify.TOLERANCE
    samples = recording_of_first.group("argmax0/")
    clear = samples["margin"] > verify.TOLERANCE * np.max(scores)
    same = np.argmax(scores, axis=1).ravel()[samples["idx"]] == samples["values"]
    assert clear.mean() > 0.5
    assert same[clear].all()


@pytest.mark.full
def test_full_size_beit_on_an_oblong_image_is_the_beit_with_resized_tables():
    """The original refuses other sizes than it was made for; it resizes tables when it loads."""
    config = config_of("upernet_beit_adapter_large_640_160k_ade20k_ss")
    variables = torch_weights.from_state_dict(verify.filled_state_dict(config), config)
    images = np.random.default_rng(0).standard_normal((1, 512, 768, 3)).astype(np.float32)
    outputs = jax.device_get(verify.run(build_model(config.model), variables, images))

    tables = {
        path: resize_relative(np.asarray(table), (40, 40), (32, 48))
        for path, table in parameter_paths.by_path(variables).items()
        if path.endswith("relative_position_bias_table")
    }
    assert len(tables) == 24
    config.model.backbone.window = (32, 48)
    variables = parameter_paths.nested(parameter_paths.by_path(variables) | tables)
    expected = jax.device_get(verify.run(build_model(config.model), variables, images))
    assert outputs["output"].shape == (1, 150, 512, 768)
    for name, value in outputs.items():
        assert relative_error(value, expected[name]) < verify.TOLERANCE, name
