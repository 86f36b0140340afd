"""Sends the numbers and pictures of a run to the trackers that `config.track` names.

TensorBoard's events need no further package. Weights & Biases (`wandb`) and Trackio (`trackio`)
each need their own, which the extras of the same names install.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxseg.atomic_files import write_text
from jaxseg.errors import ConfigError, first_line
from jaxseg.recipes.listed import listed_names
from jaxseg.reporting.event_file import EventFile

# In the work directory: the name of the run for trackers that keep many, so that it can go on.
IDENTITY = "tracker.json"


class WeightsAndBiases:
    """A run in Weights & Biases.

    A run that resumes sends some steps again. Steps are therefore a value of their own, because the
    library drops what is older than its own count.
    """

    def __init__(self, workdir: pathlib.Path, name: str, config: Mapping[str, Any], identity: str):
        import wandb

        self._library = wandb
        with _starting("wandb", "run `wandb login`, or set WANDB_MODE=offline"):
            self._run = self._library.init(
                project=_project(),
                name=name,
                id=identity,
                dir=str(workdir),
                config=dict(config),
                resume="allow",
            )
            self._run.define_metric("*", step_metric="step")

    def add_scalars(self, step: int, values: Mapping[str, float]):
        self._run.log({**values, "step": step})

    def add_image(self, step: int, name: str, picture: UInt8[np.ndarray, "h w 3"]):
        self._run.log({name: self._library.Image(picture), "step": step})

    def close(self, failed: bool):
        self._run.finish(exit_code=int(failed))


class Trackio:
    """A run in Trackio, which keeps runs on this machine unless its own settings say otherwise."""

    def __init__(self, workdir: pathlib.Path, name: str, config: Mapping[str, Any], identity: str):
        import trackio

        self._library = trackio
        with _starting("trackio", "mend it, or take it out of config.track"):
            self._run = self._library.init(
                project=_project(),
                name=f"{name}-{identity}",
                config=dict(config),
                resume="allow",
                embed=False,
            )

    def add_scalars(self, step: int, values: Mapping[str, float]):
        self._run.log(dict(values), step=step)

    def add_image(self, step: int, name: str, picture: UInt8[np.ndarray, "h w 3"]):
        self._run.log({name: self._library.Image(picture)}, step=step)

    def close(self, failed: bool):
        self._run.finish()


Tracker = EventFile | WeightsAndBiases | Trackio
TENSORBOARD = "tensorboard"
OTHERS = {"wandb": WeightsAndBiases, "trackio": Trackio}


def tracker_names(track: Sequence[str]) -> tuple[str, ...]:
    """Returns the names in the value of `config.track`.

    Raises:
      ConfigError: for an unknown name, or if the package of a tracker is not installed.
    """
    names = listed_names(track)
    for name in names:
        if name not in (TENSORBOARD, *OTHERS):
            known = ", ".join((TENSORBOARD, *OTHERS))
            raise ConfigError(f"config.track={','.join(names)}: {name!r} is none of {known}")
        if name in OTHERS and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"config.track={','.join(names)}: the package {name} is not installed;"
                f" pip install 'jaxseg[{name}]'"
            )
    return names


def open_trackers(
    track: Sequence[str],
    workdir: pathlib.Path,
    name: str,
    config: Mapping[str, Any],
    start_step: int,
) -> list[Tracker]:
    """Opens the trackers of a run.

    Args:
      track: the value of `config.track`.
      workdir: where files are written.
      name: the name of the run.
      config: the resolved config, which the trackers show.
      start_step: the step that the run starts or resumes from. A run that starts at step 0 gets a
        new name in trackers that keep many runs.

    Raises:
      ConfigError: as `tracker_names`, or if a tracker refuses, with its reason.
      OSError: if a file cannot be written.
    """
    names = tracker_names(track)
    identity = _identity(workdir, start_step) if set(names) & OTHERS.keys() else ""
    return [
        EventFile(workdir, start_step + 1 if start_step else 0)
        if tracker == TENSORBOARD
        else OTHERS[tracker](workdir, name, config, identity)
        for tracker in names
    ]


def _identity(workdir, start_step):
    path = workdir / IDENTITY
    if not start_step or not path.is_file():
        write_text(path, json.dumps({"id": secrets.token_hex(4)}) + "\n")
    return json.loads(path.read_text())["id"]


def _project():
    return os.environ.get("WANDB_PROJECT") or "jaxseg"


@contextlib.contextmanager
def _starting(name, remedy):
    try:
        yield
    except Exception as error:  # of many kinds, by the library
        raise ConfigError(f"config.track: {name} refuses: {first_line(error)}; {remedy}") from error
