"""Settings of the loss that a model cannot use are refused before anything is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.config import load_config
from jaxseg.distributed.sharding import make_mesh
from jaxseg.errors import ConfigError
from jaxseg.losses.terms import TermSettings, sum_of_terms
from jaxseg.models.segmentation_model import ModelOutput
from jaxseg.train import check
from jaxseg.training.step import total_loss

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


def test_class_weights_are_not_set_but_filled_in():
    with pytest.raises(ConfigError, match="is filled in by training; set config"):
        checked(UPERNET, class_weights="1.0,2.0")


def test_tversky_has_two_weights():
    with pytest.raises(ConfigError, match=r"loss\.tversky=.*two numbers of 0 or more"):
        checked(UPERNET, tversky="0.3,")


def test_settings_reach_both_losses_of_a_step():
    config = load_config(UPERNET, {"loss.terms": "(('dice', 1.0), ('cross_entropy', 0.5))"})
    config.loss.class_weights = (3.0,) + (1.0,) * 149
    rng = np.random.default_rng(0)
    logits, aux_logits = (rng.normal(size=(2, *hw, 150)) for hw in ((8, 8), (2, 2)))
    labels = rng.integers(0, 3, (2, 32, 32))
    output = ModelOutput(jnp.float32(logits), jnp.float32(aux_logits))
    loss, logs = total_loss(output, jnp.asarray(labels), jax.random.key(0), config.loss)
    settings = TermSettings(**{name: config.loss[name] for name in TermSettings._fields})
    expected = [
        sum_of_terms(x, jnp.asarray(labels), config.loss.terms, settings, class_weights=(3.0,))[0]
        for x in (output.logits, output.aux_logits)
    ]
    assert loss == pytest.approx(float(expected[0] + 0.4 * expected[1]), rel=1e-5)
    assert logs["dice_loss"] + logs["cross_entropy_loss"] == pytest.approx(float(expected[0]))
