"""Settings of the loss that a model cannot use are refused before anything is computed."""

import pytest

from jaxseg.config import load_config
from jaxseg.distributed.sharding import make_mesh
from jaxseg.errors import ConfigError
from jaxseg.train import check

MASK2FORMER = "configs/ade20k.py:mask2former_beit_adapter_l"
UPERNET = "configs/ade20k.py:upernet_internimage_t"


def checked(recipe, **settings):
    config = load_config(recipe, {f"loss.{name}": value for name, value in settings.items()})
    check(config, make_mesh(config.mesh))


@pytest.mark.parametrize(
    ("name", "value"),
    [("terms", "(('dice', 1.0),)"), ("label_smoothing", 0.1), ("ignored_in_mean", False)],
)
def test_losses_of_pixels_are_refused_for_mask2former(name, value):
    with pytest.raises(ConfigError, match=rf"config\.loss\.{name} is for heads that give logits"):
        checked(MASK2FORMER, **{name: value})
    checked(UPERNET, **{name: value})


def test_class_weights_are_taken_by_both():
    for recipe in (MASK2FORMER, UPERNET):
        checked(recipe, class_weight="enet")


def test_an_unknown_term_is_refused():
    with pytest.raises(ConfigError, match="each of cross_entropy, dice, focal, lovasz, ohem"):
        checked(UPERNET, terms="(('jaccard', 1.0),)")
