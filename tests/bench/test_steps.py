"""Train steps and forward passes that are measured: every key, and figures that belong together."""

import dataclasses
import datetime

import jax
import pytest

from jaxseg.aot import hardware
from jaxseg.bench import program, steps
from jaxseg.bench.measurement import Measurement
from jaxseg.errors import ConfigError
from jaxseg.models.flops import count_flops
from jaxseg.models.segmentation_model import build_model
from support.tiny import smallest_config, tiny_config

pytestmark = pytest.mark.usefixtures("standard_promotion")

PEAK = 1e12  # of a made-up chip
ALL_KEYS = {field.name for field in dataclasses.fields(Measurement)}


def subject(what, config, **options):
    return steps.Subject(what=what, config=config, recipe="tiny:tiny", warmup=1, steps=3, **options)


@pytest.fixture(scope="module")
def measured():
    """The smallest model on eight devices of a made-up chip, by what is measured."""
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        chip = hardware.Chip(16e9, PEAK, 1e12, 1e11, 1e9)
        patch.setattr(hardware, "chip_of_device", lambda kind: chip)
        return {
            what: steps.measure_step(subject(what, smallest_config()), images_per_device=2)
            for what in ("train", "infer")
        }


@pytest.mark.parametrize("what", ["train", "infer"])
def test_a_measurement_has_all_keys(measured, what):
    found = measured[what].as_json()
    assert found.keys() == ALL_KEYS
    assert found["seconds"].keys() == {"p50", "p95", "mean", "steps"}
    absent = {key for key, value in found.items() if value is None}
    # A CPU does not report its memory; the others belong to the pipeline and to the largest batch.
    assert absent == {"peak_memory_bytes", "data_share", "workers", "limit"}
    assert (found["device"], found["devices"], found["batch"]) == ("cpu", 8, 16)
    assert (found["what"], found["recipe"], found["dtype"]) == (what, "tiny:tiny", "float32")
    assert found["versions"]["jax"] == jax.__version__
    assert datetime.date.fromisoformat(found["date"])


@pytest.mark.parametrize(
    ("what", "operations", "image_hw"), [("train", 6, (64, 64)), ("infer", 2, (64, 128))]
)
def test_mfu_times_time_times_peak_is_what_is_counted(measured, what, operations, image_hw):
    found = measured[what]
    assert found.image_hw == image_hw
    model = build_model(smallest_config().model)
    counted = operations * sum(count_flops(model, image_hw).values())
    assert found.flops_per_image == pytest.approx(counted, rel=0.01)
    done = found.mfu * found.seconds.p50 * PEAK * found.devices
    assert done == pytest.approx(counted * found.batch, rel=0.01)
    assert found.images_per_second == pytest.approx(found.batch / found.seconds.p50)


@pytest.mark.parametrize("what", ["train", "infer"])
def test_a_measurement_can_be_read(measured, what):
    text = measured[what].text()
    assert text.startswith(f"{what} of tiny:tiny on 8 x cpu\n")
    assert "16 of 64 x" in text
    assert f"{measured[what].mfu:.1%}" in text


def test_a_step_that_does_not_fit_is_told_with_what_helps(monkeypatch):
    def refuse(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 3 GB more than there are\n  at")

    monkeypatch.setattr(steps, "compile_program", refuse)
    with pytest.raises(ConfigError, match=r"train of tiny:tiny does not fit .*3 GB more.* --batch"):
        steps.measure_step(subject("train", tiny_config()))


def test_the_largest_batch_is_the_last_that_runs(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    tried = []

    def compile_program(config, what, mesh):
        tried.append(config.batch_size // mesh.size)
        if tried[-1] > 16:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: too much\n  at")
        return program.Program(lambda: None, 1.0, False, (config.batch_size, 64, 64, 3))

    monkeypatch.setattr(steps, "compile_program", compile_program)
    config = tiny_config(**{"model.kernels": "xla"})
    found = steps.measure_largest(subject("train", config))
    assert tried == [8, 16, 32]
    assert (found.batch, found.limit) == (16 * 8, "32 a device: RESOURCE_EXHAUSTED: too much")


def test_a_cpu_has_no_largest_batch():
    with pytest.raises(ConfigError, match="--batch N"):
        steps.measure_largest(subject("train", tiny_config()))


def test_a_batch_that_cannot_be_trained_is_refused_before_it_is_compiled():
    config = tiny_config(batch_size=12)
    with pytest.raises(ConfigError, match=r"config\.batch_size=12 cannot be split over 8 devices"):
        steps.measure_step(subject("train", config))
