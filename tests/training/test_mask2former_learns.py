"""A small Mask2Former learns street scenes from nothing, through the real program (full only)."""

import json
import os
import sys

import pytest

from jaxseg.data.synthetic.writer import write_street_scenes
from support.runs import ROOT, USER_FLAGS, run


@pytest.mark.full
@pytest.mark.parametrize(
    ("variant", "dtype", "least"),
    [
        # Seeds 0 and 1 gave mIoU 0.543 and 0.558 in float32, 0.529 and 0.547 in bfloat16.
        ("tiny", "float32", 0.45),
        ("tiny", "bfloat16", 0.45),
        ("dinov3", "float32", 0.40),
        ("frozen_dinov3", "float32", 0.30),  # a random transformer, which only the adapter reads
    ],
)
def test_two_hundred_steps_are_enough_for_scenes_it_has_not_seen(variant, dtype, least, tmp_path):
    """It ends with status 0, so all losses and gradients were finite: another one would stop it."""
    settings = {
        "model.dtype": dtype,
        "data.root": write_street_scenes(
            tmp_path / "scenes", train=300, val=40, image_hw=(128, 256), seed=0
        ),
    }
    line = [sys.executable, "-m", "jaxseg.main", "--config"]
    line += [f"tests/support/tiny_mask2former.py:{variant}"]
    line += ["--workdir", str(tmp_path / "run")]
    line += [f"--config.{key}={value}" for key, value in settings.items()]
    # One device, and code as fast as for users: it runs for longer than it is compiled.
    environment = os.environ | {"XLA_FLAGS": USER_FLAGS}
    run({"args": line, "env": environment, "cwd": ROOT, "text": True}, timeout_seconds=3600)
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert scores["classes_in_mIoU"] == 19
    assert scores["mIoU"] > least
