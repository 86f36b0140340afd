"""Full-size models against the recorded features, logits and class maps (`make test-full`)."""

import pytest
from published import config_of, name_of
from reference_files import recordings

from converters import convert, verify

RECORDINGS = [
    path for path in recordings("internimage/full") if not path.stem.startswith("mask2former")
]


@pytest.mark.reference
@pytest.mark.full
@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_full_size_model_equals_the_reference(path):
    config = config_of(name_of(path))
    variables = convert.from_state_dict(verify.filled_state_dict(config), config)
    comparison = verify.compare(config, variables, verify.read_recording(path))
    assert comparison.within(verify.TOLERANCE), comparison.table()
    assert comparison.clear > 0.9
