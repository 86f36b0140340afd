"""Saves and restores the checkpoints of a training run with Orbax.

A checkpoint has two parts: the model (parameters, batch statistics, moving average) and the
optimizer. Evaluation and prediction read only the model. The resolved config is stored too, so that
they need no config file, and how many images were taken, which is the data position.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging
from etils import epath
from orbax.checkpoint import v1 as ocp

from jaxseg.checkpoints.resuming import accepted_changes
from jaxseg.checkpoints.weights import load_images_taken, load_saved_config
from jaxseg.distributed import multihost
from jaxseg.errors import CheckpointError, first_line
from jaxseg.training.state import TrainState
from jaxseg.workdir import AnyPath, any_path, in_bucket

ATTEMPTS = 3  # failures to save in a row after which the run ends
# Time limit for all processes to finish saving. If one fails, the others wait for this long.
SAVE_SECONDS = 600
# Suffix of an old checkpoint until a new one of the same step is complete.
SET_ASIDE_SUFFIX = ".aside"


def _model_part(state: TrainState) -> dict[str, Any]:
    part = {"params": state.params, "batch_stats": state.batch_stats}
    return part if state.ema is None else part | {"ema": state.ema}


class Checkpoints:
    """Saves and restores the checkpoints of one run, and keeps the newest few and the best by mIoU.

    Saving is asynchronous. A checkpoint appears under its name only when it is complete, and only
    then are older ones removed. With several processes, all of them must save and restore together.

    Args:
      directory: where the checkpoints are.
      config: the resolved config, stored in every checkpoint.
      keep: number of newest checkpoints to keep.

    Attributes:
      changes: the settings that the run changed when it was restored (`resuming`), a line each.
      first_image: the index of the first image of batch 0, if all batches had the size of now. It
        is not 0 in a run whose batch size has changed.
    """

    def __init__(self, directory: AnyPath, config: Mapping[str, Any], keep: int):
        self.directory = any_path(directory)
        self._config = config
        self._saving: tuple[int, Mapping[str, float] | None] | None = None  # step, metrics
        self._failures: list[str] = []  # in a row
        self._unreadable: set[int] = set()  # steps
        self.changes: list[str] = []
        self.first_image = 0
        multihost.on_process_0(self._recover_set_aside)
        for unfinished in sorted(self.directory.glob("*.orbax-checkpoint-tmp*")):
            logging.warning("ignoring an incomplete checkpoint: %s", unfinished)
        policies = ocp.training.preservation_policies
        context = ocp.Context()
        context.asynchronous.timeout_secs = SAVE_SECONDS
        self._checkpointer = ocp.training.Checkpointer(
            self.directory,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep),
                    policies.BestN(
                        get_metric_fn=lambda metrics: metrics["mIoU"],
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            cleanup_tmp_directories=True,
            context=context,
        )

    def save(self, state: TrainState, step: int, metrics: Mapping[str, float] | None = None):
        """Saves in the background and returns once the arrays are copied off the devices.

        If the previous save failed, the failure is reported here. It is not repeated, because this
        save replaces it.

        Args:
          state: the state to save.
          step: its number of updates.
          metrics: its scores, if it was evaluated. "mIoU" decides which checkpoint is the best.

        Raises:
          CheckpointError: if saving fails `ATTEMPTS` times in a row.
        """
        self._finish_pending_save()
        while not self._attempt(step, lambda: self._start(state, step, metrics)):
            time.sleep(len(self._failures))
        self._saving = step, metrics

    def finish(self, state: TrainState):
        """Waits until the last saved state is on disk, and saves it again if that failed.

        Args:
          state: the state that was given to `save` last.

        Raises:
          CheckpointError: if saving fails `ATTEMPTS` times in a row.
        """
        while self._saving:
            saving = self._saving
            if not self._finish_pending_save():
                self.save(state, *saving)

    def _finish_pending_save(self):
        """Waits for the save in progress, if any, and returns whether it succeeded."""
        if self._saving is None:
            return True
        (step, _), self._saving = self._saving, None
        done = self._attempt(step, self._checkpointer.wait)
        if done:
            self._failures.clear()
            multihost.on_process_0(self._recover_set_aside)
        return done

    def _attempt(self, step: int, action: Callable[[], Any]) -> bool:
        """Does a part of saving, reports a failure, and returns whether all processes succeeded."""
        error = None
        try:
            action()
        except Exception as raised:
            error = raised
        if not multihost.any_process(error is not None):
            return True
        self._failures.append(first_line(error) if error else "in another process")
        if len(self._failures) == ATTEMPTS:
            raise CheckpointError(
                f"cannot save step {step} in {self.directory}, {ATTEMPTS} times in a row:"
                f" {self._failures[0]}. The earlier checkpoints are intact; start again to resume"
                " from there"
            ) from error
        _report(error, "saving step %d failed, trying again: %s", step, self._failures[-1])
        self._checkpointer.reload()  # forget the checkpoint that was not written
        return False

    def _start(self, state, step, metrics):
        if any(checkpoint.step == step for checkpoint in self._checkpointer.checkpoints):
            # The old one is damaged and was skipped, or it is saved again with its metrics.
            saved = self.directory / str(step)
            if in_bucket(saved) and step not in self._unreadable:
                # Nothing can be renamed at once there: a kill could leave neither of the two.
                logging.warning("the checkpoint of step %d stays as it is, without metrics", step)
                return
            multihost.on_process_0(lambda: saved.rename(f"{saved}{SET_ASIDE_SUFFIX}"))
            self._checkpointer.reload()
        self._checkpointer.save_checkpointables_async(
            step,
            {
                "model": _model_part(state),
                "optimizer": {"step": state.step, "opt_state": state.opt_state},
            },
            metrics=dict(metrics) if metrics else None,
            custom_metadata={
                "config": json.loads(json.dumps(self._config)),
                "images_taken": step * self._config["batch_size"] + self.first_image,
            },
        )

    def _recover_set_aside(self):
        """Removes each checkpoint that was set aside, or puts it back if no new one replaced it."""
        for aside in self.directory.glob(f"*{SET_ASIDE_SUFFIX}"):
            if aside.with_suffix("").exists():
                epath.Path(aside).rmtree()
            else:
                aside.rename(aside.with_suffix(""))

    def restore_latest(self, abstract: TrainState) -> TrainState | None:
        """Restores the state of the newest readable checkpoint.

        Args:
          abstract: shapes, types and shardings of the state.

        Returns:
          The state with these shardings, or None if there is no checkpoint.

        Raises:
          CheckpointError: if the checkpoint was written with another config or contains only
            weights, or if there are checkpoints but none can be read.
        """
        found = list(reversed(self._checkpointer.checkpoints))
        for checkpoint in found:
            error = None
            try:
                path = self.directory / str(checkpoint.step)
                _refuse_weights_alone(path)
                saved, taken = load_saved_config(path), load_images_taken(path)
                changes = accepted_changes(saved, self._config, f"checkpoint {path}")
                parts = self._checkpointer.load_checkpointables(
                    checkpoint.step,
                    {
                        "model": _model_part(abstract),
                        "optimizer": {"step": abstract.step, "opt_state": abstract.opt_state},
                    },
                )
            except CheckpointError:
                raise
            except Exception as raised:
                error = raised
            if multihost.any_process(error is not None):
                self._unreadable.add(checkpoint.step)
                text = "ignoring checkpoint %d, which cannot be read: %s"
                _report(error, text, checkpoint.step, error or "in another process")
                continue
            self.changes = changes
            self.first_image = taken - checkpoint.step * self._config["batch_size"]
            model = parts["model"]
            return TrainState(ema=model.pop("ema", None), **model, **parts["optimizer"])
        if found:
            raise CheckpointError(
                f"none of the {len(found)} checkpoints in {self.directory} can be read (see the"
                " warnings above); choose another --workdir to start from scratch"
            )
        return None

    def evaluated(self, step: int) -> bool:
        """Returns whether the checkpoint of this step contains the scores of its evaluation."""
        return any(c.step == step and c.metrics for c in self._checkpointer.checkpoints)

    def close(self):
        """Waits for the save in progress and closes the checkpoints.

        Raises:
          CheckpointError: if that save fails.
        """
        try:
            self._checkpointer.close()
        except Exception as error:  # of several kinds, by the part that was writing
            reason = first_line(error)
            raise CheckpointError(f"cannot save in {self.directory}: {reason}") from error

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            logging.error("%s", failure)  # the first error is the one to end with


def _report(error, text, *values):
    """Logs a failure in process 0 and in the failed process, as only errors are printed by all."""
    logging.log(logging.ERROR if error else logging.WARNING, text, *values)


def _refuse_weights_alone(checkpoint):
    if "optimizer" not in ocp.checkpointables_metadata(checkpoint).metadata:
        run = checkpoint.parent.parent
        raise CheckpointError(
            f"{run} contains only weights and cannot be resumed; train from them with"
            f" --config.init={run} and another --workdir"
        )
