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
    miou = outputs["scores.miou"]["text/plain"].removeprefix("np.float64(").rstrip(")")
    assert float(miou) > 0.05
    (same,) = (text for line, text in outputs.items() if line.endswith(".mean()"))
    assert "0.99" in same["text/plain"] or "1.0" in same["text/plain"]
