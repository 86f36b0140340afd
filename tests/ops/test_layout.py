"""Layouts of maps on a TPU, as they stand in the program that is compiled for it."""

import jax
import jax.numpy as jnp
import pytest

from jaxseg.ops import layout
from jaxseg.ops.layout import columns_in_lanes, fix_layout, free_layouts
from support.absent_tpu import absent_tpu


def layouts(function, *shape):
    """The orders of axes that a program for a TPU asks for, from the major to the minor one."""
    with absent_tpu():
        jaxpr = jax.make_jaxpr(function)(jnp.zeros(shape))
    return [
        equation.params["layout"].major_to_minor
        for equation in jaxpr.eqns
        if equation.primitive.name == "layout_constraint"
    ]


@pytest.mark.parametrize(
    ("width", "channels", "columns"),
    [(256, 64, True), (256, 160, True), (128, 128, False), (64, 256, False), (32, 64, False)],
)
def test_the_axis_that_fills_the_lanes_is_the_last_one(width, channels, columns):
    assert columns_in_lanes(width, channels) == columns
    order = (0, 1, 3, 2) if columns else (0, 1, 2, 3)
    assert layouts(fix_layout, 1, 2, width, channels) == [order]


def test_channels_may_be_asked_for():
    assert layouts(lambda x: fix_layout(x, channels=True), 1, 2, 256, 64) == [(0, 1, 2, 3)]


def test_the_gradient_has_the_same_layout():
    found = layouts(jax.grad(lambda x: jnp.sum(fix_layout(x) ** 2)), 1, 2, 256, 64)
    assert found == [(0, 1, 3, 2)] * 2


def test_exported_programs_ask_for_none():
    def function(x):
        with free_layouts():
            return fix_layout(x)

    assert layouts(function, 1, 2, 256, 64) == []


def test_other_platforms_choose_by_themselves():
    assert not jax.make_jaxpr(fix_layout)(jnp.zeros((1, 2, 256, 64))).eqns


@pytest.mark.parametrize(("platform", "fixed"), [("cpu", 0), ("gpu", 1), ("tpu", 1)])
def test_the_layout_of_a_gradient_is_fixed(platform, fixed, monkeypatch):
    monkeypatch.setattr(layout, "platform", lambda: platform)
    text = jax.jit(lambda x: layout.fix_row_major(x.T)).lower(jnp.zeros((2, 3))).as_text()
    assert text.count("LayoutConstraint") == fixed
    with layout.free_layouts():
        text = jax.jit(lambda x: layout.fix_row_major(x.T)).lower(jnp.zeros((2, 3))).as_text()
    assert "LayoutConstraint" not in text
