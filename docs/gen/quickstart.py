"""Executes docs/quickstart.ipynb in an empty folder and writes what it shows into it."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "quickstart.ipynb"
CELL_SECONDS = 300


def executed(environment: Mapping[str, str]) -> nbformat.NotebookNode:
    """Returns the notebook with the outputs of its cells.

    Args:
      environment: the variables that the notebook sees.

    Raises:
      CellExecutionError: if a cell fails.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=CELL_SECONDS, resources=resources)
        return client.execute(env=dict(environment))


if __name__ == "__main__":
    nbformat.write(executed(os.environ), NOTEBOOK)
