"""What a log line says of the time since the one before."""

import types

import pytest

from jaxseg.training import step_timer
from jaxseg.training.step_timer import StepTimer


@pytest.fixture
def clock(monkeypatch):
    """Sets the time that the timer reads."""
    now = [0.0]
    monkeypatch.setattr(step_timer, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def test_a_timer_gives_the_rate_the_share_of_waiting_and_the_use_of_the_peak(clock):
    timer = StepTimer()
    for seconds in (2.0, 4.0):
        with timer.waiting():
            clock[0] += 0.25 * seconds
        timer.count(replaced=0)
        clock[0] += 0.75 * seconds
    assert timer.close(batch_size=6, seconds_at_peak=0.9) == pytest.approx(
        {"step_seconds": 3.0, "images_per_second": 2.0, "data_share": 0.25, "mfu": 0.3}
    )


def test_without_a_known_peak_there_is_no_mfu(clock):
    timer = StepTimer()
    timer.count(replaced=1)
    clock[0] += 1.0
    found = timer.close(batch_size=2)
    assert set(found) == {"step_seconds", "images_per_second", "data_share", "replaced_samples"}
