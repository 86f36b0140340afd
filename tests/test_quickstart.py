"""The notebook of the documentation runs as it stands, in the time that it promises."""

import importlib.util
import os
import time

import pytest

from support.runs import ROOT, USER_FLAGS


@pytest.mark.full
def test_the_notebook_runs(tmp_path):
    spec = importlib.util.spec_from_file_location("quickstart", ROOT / "docs/gen/quickstart.py")
    quickstart = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(quickstart)
    start = time.monotonic()
    notebook = quickstart.executed(os.environ | {"XLA_FLAGS": USER_FLAGS})
    assert time.monotonic() - start < 180
    outputs = {
        cell["source"].splitlines()[-1]: cell["outputs"][-1]["data"]
        for cell in notebook.cells
        if cell["cell_type"] == "code" and "data" in (cell["outputs"] or [{}])[-1]
    }
    assert "image/png" in outputs["Image.open(panel)"]
    assert "image/png" in outputs["Image.fromarray(result.overlay(alpha=0.6))"]
    assert number(outputs["scores.miou"]) > 0.05
    (same,) = (output for line, output in outputs.items() if line.endswith(".mean()"))
    assert number(same) >= 0.999  # of the pixels have the class that jaxseg gives them


def number(output):
    return float(output["text/plain"].removeprefix("np.float64(").rstrip(")"))
