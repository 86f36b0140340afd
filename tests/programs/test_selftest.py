"""`python -m jaxseg.selftest`: passes here, and names an operator that is wrong."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxseg.selftest import __main__ as program
from jaxseg.selftest import models, operators
from jaxseg.selftest.check import checked
from pallas_kernels import choice, dispatch, reference, xla
from support.reference_files import relative_error

OPERATORS = list(operators.CASES)


def wrong_sign(operator):
    """Offsets, or locations, go the other way."""

    def run(*arguments, **settings):
        *before, places, weights = arguments
        return operator(*before, -places, weights, **settings)

    return run


def shifted_index(operator):
    """Every sample is that of the pixel before."""

    def run(value, *others, **settings):
        return operator(jnp.roll(value, 1, axis=1), *others, **settings)

    return run


def lost_group(operator):
    """The first group, or head, gives nothing."""

    def run(*arguments, **settings):
        output = operator(*arguments, **settings)
        return output.at[..., : output.shape[-1] // 8].set(0)

    return run


def replace(monkeypatch, operator, change):
    """Changes what runs on a CPU."""
    if operator == "self_attention":
        monkeypatch.setitem(dispatch.ATTENTION, "xla", change(dispatch.ATTENTION["xla"]))
    else:
        monkeypatch.setattr(xla, operator, change(getattr(xla, operator)))


@pytest.fixture
def forgetful():
    """What is traced in a test is not used by another."""
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_pass(operator, dtype):
    check = checked("it", lambda: operators.operator_errors(operator, "odd", dtype))
    assert check.passed, check


FAULTS = [("dcnv3", wrong_sign), ("dcnv3", shifted_index), ("dcnv3", lost_group)]
FAULTS += [(operator, shifted_index) for operator in OPERATORS if operator != "dcnv3"]


@pytest.mark.parametrize(("operator", "fault"), FAULTS)
def test_a_wrong_operator_is_named(operator, fault, monkeypatch, forgetful, capsys, tmp_path):
    replace(monkeypatch, operator, fault)
    monkeypatch.setattr(models, "MODELS", {})  # tested by themselves, below
    monkeypatch.setattr(
        operators, "CASES", {o: {"small": operators.CASES[o]["small"]} for o in OPERATORS}
    )
    file = tmp_path / "selftest.json"
    with pytest.raises(
        SystemExit, match=f"failed: {operator} small float32, {operator} small bfloat16$"
    ):
        program.main(["--json", str(file)])
    assert "8 of 10 checks passed" in capsys.readouterr().out
    result = json.loads(file.read_text())
    assert not result["passed"]
    failed = [check["name"] for check in result["checks"] if not check["passed"]]
    assert failed == [f"{operator} small {dtype}" for dtype in ("float32", "bfloat16")]
    assert result["facts"]["jax"] == jax.__version__


def test_a_kernel_that_gave_way_to_xla_is_named(monkeypatch):
    assert checked("it", operators.kernel_errors).passed
    monkeypatch.setattr(choice, "refusals", lambda: {"dcnv3": "Error: no such register"})
    check = checked("it", operators.kernel_errors)
    assert not check.passed
    assert check.worst == "dcnv3: Error: no such register"


def test_a_check_that_raises_has_failed_and_says_so():
    def broken():
        raise NotImplementedError("no such instruction\nand more")

    check = checked("it", broken)
    assert not check.passed
    assert check.worst == "NotImplementedError: no such instruction"


def test_a_result_that_is_not_a_number_has_failed():
    assert not checked("it", lambda: {"a": (0.0, 1.0), "b": (float("nan"), 1.0)}).passed


# The quickest every time.
NAMES = [
    pytest.param(name, marks=[pytest.mark.full] * ("Adapter" in name)) for name in models.MODELS
]


@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_models_are_those_of_the_definition(name, monkeypatch, forgetful):
    """The numbers that come with the package, computed without the optimized implementations."""
    for operator in OPERATORS:
        replace(monkeypatch, operator, lambda _, name=operator: getattr(reference, name))
    expected = json.loads(models.NUMBERS.read_text())[name]
    found = models.model_numbers(name)
    for key, tolerance in models.MODEL.items():
        assert relative_error(found[key], expected[key]) < tolerance, key


def test_numbers_are_small():
    assert models.NUMBERS.stat().st_size < 200_000


@pytest.mark.full
def test_the_program_passes_outside_the_repository(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "jaxseg.selftest", "--json", "selftest.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "selftest.json").read_text())
    assert result["passed"]
    # Four operators in three sizes and two types; their kernels; three models; a checkpoint.
    assert len(result["checks"]) == 4 * 3 * 2 + 1 + 3 + 1
