"""Damaged inputs give a right result or a JaxsegError; `benchmarks/fuzz.py` tries thousands."""

import subprocess
import sys

from support.runs import ROOT


def test_damaged_inputs_are_read_or_refused():
    fuzz = [sys.executable, "benchmarks/fuzz.py", "--count", "210", "--seed", "1"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(
        fuzz, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "210 inputs in" in done.stdout
    assert "0 with another outcome" in done.stdout
