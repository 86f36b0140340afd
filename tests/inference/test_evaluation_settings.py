"""Views and windows that cannot be are named before anything is computed."""

import pytest

from jaxseg import train
from jaxseg.distributed.sharding import make_mesh
from jaxseg.errors import ConfigError
from support.tiny import tiny_config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "both"}, "eval.protocol=both: 'ss' or 'ms'"),
        ({"ss": {"ratios": ()}}, r"eval.ss.ratios=\(\): one or more, above 0"),
        ({"ss": {"pad": "left"}}, "eval.ss.pad=left: 'none' or 'before_normalize' or"),
        ({"mode": "sliding"}, "eval.mode=sliding: must be 'whole' or 'slide'"),
        ({"crop_hw": (512,)}, r"eval.crop_hw=\(512,\): must be height and width"),
        ({"crop_hw": (512, 0)}, r"eval.crop_hw=\(512, 0\): must be height and width"),
        ({"stride_hw": (341, 341.5)}, r"eval.stride_hw=\(341, 341.5\): must be height and width"),
        ({"stride_hw": (341, 513)}, r"eval.stride_hw=\(341, 513\) leaves gaps .*\(512, 512\)"),
    ],
)
def test_views_and_windows_that_cannot_be_are_refused_before_training(changes, message):
    config = tiny_config()
    with config.ignore_type():
        config.eval.update({"mode": "slide", **changes})
    with pytest.raises(ConfigError, match=message):
        train.check(config, make_mesh({"data": -1, "fsdp": 1}))


def test_a_config_from_before_there_were_protocols_says_so():
    config = tiny_config()
    del config.eval.protocol
    with pytest.raises(ConfigError, match="of an earlier jaxseg"):
        train.check(config, make_mesh({"data": -1, "fsdp": 1}))
