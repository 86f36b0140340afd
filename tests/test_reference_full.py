"""Full-size models against the recorded features, logits and class maps (`make test-full`)."""

import pytest
from published import config_of, name_of
from reference_files import recordings

from converters import convert, recording, verify

RECORDINGS = [
    path
    for folder in ("internimage/full", "vit_adapter/full")
    for path in recordings(folder)
    if not path.stem.startswith("mask2former")  # not built yet
]


@pytest.mark.reference
@pytest.mark.full
@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_full_size_model_equals_the_reference(path):
    config = config_of(name_of(path))
    variables = convert.from_state_dict(verify.filled_state_dict(config), config)
    comparison = verify.compare(config, variables, recording.read(path))
    assert comparison.within(verify.TOLERANCE), comparison.table()
    assert comparison.clear > 0.9
