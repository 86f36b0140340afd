"""Ten training steps of a small ViT-Adapter with UperNet, as the original took them.

In float64, for the recordings are chaotic. Those of 64 × 64 pixels normalise over two to eight
values, and the original's float32 loses its float64 by 1e-3. That of 96 × 96 is called well
conditioned because these two stay together; but at its second step a ReLU of the head (in
fpn_convs.0) stands at 1.8e-6, which is less than the rounding of float32 there, and an
implementation that rounds to the other side, as ours does, has another gradient by 7e-4 and after
eight more steps another loss by 2%. In float64 all three are followed closely.
"""

import os
import sys

import numpy as np
import pytest
from processes import ROOT, run
from reference_files import Recording, recordings
from trajectories import assert_final

# One of them every time, the others, of another size and rate, in the full run.
FILES = [
    pytest.param(path, id=path.stem, marks=() if path.stem.endswith("_96") else pytest.mark.full)
    for path in recordings("vit_adapter/trajectory")
    if not path.stem.startswith("mask2former")  # not compared yet
]

# Measured: 3e-13, 1e-10 and 1e-13 on upernet_tiny, and hundreds of times less on the others.
LOSS, NORM, PARAMETERS = 1e-11, 1e-9, 1e-11


@pytest.mark.reference
@pytest.mark.parametrize("path", FILES)
def test_training_in_float64_follows_the_reference(path, tmp_path):
    output = tmp_path / "trajectory.npz"
    program = ROOT / "tests" / "train_in_float64.py"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    arguments = [sys.executable, program, path, output]
    run({"args": arguments, "env": environment, "text": True}, timeout_seconds=600)
    recording, ours = Recording(path), Recording(output)

    first = ours.group("first_norms/")
    assert set(recording["grad0/names"]) == set(first)
    norms = [first[name] for name in recording["grad0/names"]]
    np.testing.assert_allclose(norms, recording["f64/grad0/norm"], rtol=1e-5, atol=1e-9)

    np.testing.assert_allclose(ours["losses"], recording["f64/steps/total"], rtol=LOSS)
    np.testing.assert_allclose(ours["gradient_norms"], recording["f64/steps/grad_norm"], rtol=NORM)
    names = recording["final/names"].tolist()
    means, stds = recording["f64/final/mean"], recording["f64/final/std"]
    values = recording.group("f64/final/value/")
    assert_final(ours.group("final/"), names, means, stds, values, PARAMETERS)
