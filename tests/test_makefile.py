"""What `make` does with an environment that is there."""

import os
import pathlib
import subprocess
import sys

import pytest

MAKEFILE = pathlib.Path(__file__).parents[1] / "Makefile"
DESCRIBE = "import sys; print(sys.base_prefix, sys.version)"


def make_interpreter(folder):
    command = ["make", "-f", str(MAKEFILE), ".venv/interpreter", f"PYTHON={sys.executable}"]
    # Without what an outer `make test` hands on.
    variables = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def environment(folder, shown):
    """An environment whose Python prints a text, whatever it is asked."""
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\ncat <<'END'\n{shown}\nEND\n")
    os.chmod(python, 0o755)
    return python


def test_an_environment_of_the_same_python_is_used(tmp_path):
    shown = subprocess.check_output([sys.executable, "-c", DESCRIBE], text=True).strip()
    python = environment(tmp_path, shown)
    for _ in range(2):
        status, output = make_interpreter(tmp_path)
        assert status == 0, output
        assert python.exists()


@pytest.mark.parametrize("used_before", [False, True])
def test_an_environment_of_another_python_is_refused_and_not_removed(tmp_path, used_before):
    python = environment(tmp_path, "/usr 3.9")
    if used_before:
        (tmp_path / ".venv" / "interpreter").write_text("taken\n")
    status, output = make_interpreter(tmp_path)
    assert status == 2
    assert ".venv has another Python (/usr 3.9), and make did not make it" in output
    assert python.exists()


def test_an_environment_that_make_made_is_made_anew_with_another_python(tmp_path):
    python = environment(tmp_path, "/usr 3.9")
    (tmp_path / ".venv" / "interpreter").write_text("made\n")
    status, output = make_interpreter(tmp_path)
    assert status == 0, output
    assert "cat <<" not in python.read_bytes()[:100].decode("latin-1")
