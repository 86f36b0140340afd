"""Trains a model in one loop that reads from top to bottom."""

import contextlib
import functools
import json
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxseg.aot.utilization import seconds_at_peak
from jaxseg.atomic_files import write_text
from jaxseg.checkpoints import initial_weights
from jaxseg.checkpoints.manager import Checkpoints
from jaxseg.checkpoints.resuming import allowed_keys
from jaxseg.checkpoints.run_lock import run_lock
from jaxseg.checkpoints.weights import newest_saved_config
from jaxseg.config import flatten_config
from jaxseg.data.pipeline import training_batches
from jaxseg.data.source import check_sources, evaluated_on, trained_on
from jaxseg.data.transforms import AUGMENTATIONS
from jaxseg.distributed import multihost, processes
from jaxseg.distributed.sharding import (
    check_batch,
    infer_shardings,
    local_row_indices,
    make_mesh,
    put_batch,
    with_shardings,
)
from jaxseg.errors import ConfigError
from jaxseg.evaluation.evaluator import Stopped, evaluate, measure_names
from jaxseg.evaluation.results import report_evaluation, what_was_evaluated, write_evaluation
from jaxseg.inference.image_sizes import check_image_sizes
from jaxseg.losses.terms import check_no_terms, check_settings
from jaxseg.models import kernels
from jaxseg.models.lora import split_low_rank
from jaxseg.models.segmentation_model import build_model
from jaxseg.reporting.manifest import fingerprint, versions, write_manifest
from jaxseg.reporting.report import Report
from jaxseg.reporting.trackers import IDENTITY, tracker_names
from jaxseg.training.finite import check_finite
from jaxseg.training.freezing import check_frozen, frozen_patterns, join_frozen
from jaxseg.training.from_data import choose_from_data, describe_choice
from jaxseg.training.label_check import LabelCheck
from jaxseg.training.optimizer import learning_rate_schedule, make_optimizer
from jaxseg.training.profiler import Profile
from jaxseg.training.state import TrainState, init_state
from jaxseg.training.step import jit_train_step
from jaxseg.training.step_timer import StepTimer
from jaxseg.workdir import AnyPath, WorkDirectory, any_path

# What an earlier start of a run has written and a later one adds to.
RECORDS = ("metrics.jsonl", "run.json", IDENTITY)


def train(config: ConfigDict, workdir: str | pathlib.Path):
    """Trains a model, and resumes the run in `workdir` if there is one.

    The function returns when all steps are made, or after SIGTERM with everything saved. If it is
    called again with the same directory, it continues as if it had never stopped. Several processes
    (`jaxseg.distributed.processes`) train as one run. If one must stop, all of them stop.

    Args:
      config: the resolved config.
      workdir: the directory of checkpoints, logs and results, or gs://BUCKET/PATH. It is created
        if necessary.

    Raises:
      JaxsegError: if the config, dataset or checkpoint does not fit, or if the loss or a gradient
        is not finite. The latter message names the step and the first bad tensor.
    """
    kernel_setting, _ = kernels.kernel_setting(config.model)
    multihost.check_same_config(
        flatten_config(config.to_dict()) | {"model.kernels": kernel_setting}
    )
    mesh = make_mesh(config.mesh)
    check(config, mesh)
    config = config.copy_and_resolve_references()
    with WorkDirectory(workdir) as directory:
        make_writable(directory.path)
        if jax.process_index() == 0:
            directory.fetch(*RECORDS)
        with run_lock(directory.folder):
            choose_from_data(config, newest_saved_config(directory.checkpoints))
            check_image_sizes(config)
            _train(config, directory, mesh)


def _train(config: ConfigDict, directory: WorkDirectory, mesh: jax.sharding.Mesh):
    """Trains with checked settings, in a work directory that no other run uses."""
    stop_signal = processes.StopSignal()

    rows = local_row_indices(mesh, config.batch_size)
    batches = training_batches(
        config.data, batch_size=config.batch_size, seed=config.seed, rows=rows
    )
    model = build_model(config.model, config.deterministic)
    optimizer = make_optimizer(config.optim, config.model.backbone, config.steps)

    def fresh_state():
        return init_state(config, model, optimizer)

    # Shapes first: nothing large is ever created unsharded.
    shapes = jax.eval_shape(fresh_state)
    frozen = frozen_patterns(config.optim)
    check_frozen(shapes.params, frozen)
    shardings = infer_shardings(shapes, config.sharding, mesh)
    if config.init and not any(directory.checkpoints.glob("[0-9]*")):
        # Missing weights are reported before anything is computed.
        initial_weights.check_available(config.init)
    saved = Checkpoints(directory.checkpoints, config.to_dict(), config.checkpoint.keep)
    state, origin = restore_or_start(config, saved, fresh_state, shapes, shardings)
    first_step = step = int(state.step)
    batches.set_state({"batches_taken": first_step, "first_image": saved.first_image})

    train_step = jit_train_step(config, model, optimizer, shardings, mesh)

    @functools.cache
    def step_seconds_at_peak():
        return seconds_at_peak(config, mesh, (config.batch_size, *config.data.crop_hw, 3), "train")

    rate = learning_rate_schedule(config.optim, config.steps)
    main_process = jax.process_index() == 0
    with (
        contextlib.closing(batches),
        saved,  # waits for the save in progress, even after an exception
        Report(
            directory.folder,
            total_steps=config.steps,
            start_step=first_step,
            enabled=main_process,
            track=config.track,
            name=any_path(directory.path).name,
            config=config.to_dict(),
        ) as report,
        Profile(config.profile, directory.folder / "profile", report.message) as profile,
        processes.ending_together(lambda: f"step {step}"),
    ):
        describe(report, config, mesh, state, f"{origin}, at step {first_step} of {config.steps}")
        timer, logs = StepTimer(), None
        label_check = LabelCheck(trained_on(config.data).dataset.classes)

        def due(every):
            return step > 0 and (step == config.steps or step % every == 0)

        # Each iteration begins with the state after `step` updates and does what is due for it.
        while True:
            stopping = stop_signal.at(step)
            evaluation_due = due(config.eval.every_steps) and not saved.evaluated(step)
            save_due = due(config.checkpoint.every_steps)
            if evaluation_due or save_due or stopping:
                check_finite(step, logs, state, frozen)
                scores = None
                if evaluation_due and not stopping:
                    scores = evaluate_now(
                        config, model, state, mesh, directory, report, stop_signal
                    )
                    stopping = scores is None
                if scores or (step > first_step and (save_due or stopping)):
                    saved.save(state, step, scores)
                directory.push()
                timer = StepTimer()  # evaluation and saving do not count as time of a step
            if step == config.steps or stopping:
                break

            with timer.waiting():
                batch = next(batches)
            timer.count(replaced=int(batch.pop("replaced").sum()))
            if warning := label_check.warning(batch["label"], last=step + 1 == config.steps):
                report.message(warning)
            previous = logs
            batch = put_batch(batch, mesh)
            # An array that moves to the devices unasked would cost time at every step.
            with jax.set_mesh(mesh), jax.transfer_guard("disallow"):
                state, logs = train_step(state, batch)
            # Check the previous step while the devices compute this one.
            check_finite(step, previous, state, frozen)
            step += 1
            profile.after(step - first_step, state)

            if step % config.log_steps == 0 or step == first_step + 1:
                at_peak = step_seconds_at_peak()  # counted while the devices compute
                check_finite(step, logs, state, frozen)
                numbers = {name: float(value) for name, value in logs.items() if name != "norms"}
                numbers["learning_rate"] = float(rate(step - 1))
                report.train(step, numbers | timer.close(config.batch_size, at_peak))

        saved.finish(state)
        if stopping:
            report.message(f"SIGTERM: saved at step {step}; start again to resume from there")


def check(config: ConfigDict, mesh: jax.sharding.Mesh):
    """Checks the settings that would otherwise fail later and with a less clear message.

    Raises:
      ConfigError: if a setting does not fit. The message names it and its allowed values.
    """
    check_batch(config.batch_size, config.optim.accumulation, mesh)
    allowed_keys(config)
    tracker_names(config.track)
    kernels.check_kernels(config.model, mesh.devices.flat[0].platform)
    check_image_sizes(config)
    measure_names(config)
    check_settings(config.loss)
    if config.loss.class_weights:
        raise ConfigError(
            f"config.loss.class_weights={config.loss.class_weights} is filled in by training; set"
            " config.loss.class_weight"
        )
    if config.model.decode_head.kind == "mask2former":
        check_no_terms(config.loss)
    if config.data.augmentation not in AUGMENTATIONS:
        known = " or ".join(map(repr, AUGMENTATIONS))
        raise ConfigError(f"config.data.augmentation={config.data.augmentation}: must be {known}")
    check_sources(config.data)
    trained = trained_on(config.data).dataset
    if len(trained.classes) == 1 and config.model.decode_head.kind != "mask2former":
        raise ConfigError(
            f"{trained.name} has one class, {trained.classes[0]!r}. The softmax of one output is"
            " always 1, so nothing would be learned and every score would be 100. Give the rest a"
            " class of its own, such as `0: background` instead of `0: ignore`, or a line"
            " `background` for what annotations leave out; or take a mask2former head, which has an"
            " output for no object"
        )
    for head in ("decode_head", "auxiliary_head"):
        settings = config.model.get(head)
        if settings and settings.num_classes < len(trained.classes):
            raise ConfigError(
                f"config.model.{head}.num_classes={settings.num_classes}, but {trained.name} has"
                f" {len(trained.classes)} classes"
            )


def make_writable(workdir: AnyPath):
    """Creates the work directory and checks that all processes can write to it.

    Raises:
      ConfigError: if it cannot be written to, or if the processes do not share it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".writable-{jax.process_index()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"cannot write to the work directory {workdir}: {error.strerror}; choose another with"
            " --workdir"
        ) from error
    if without := multihost.processes_without_shared_file(workdir):
        raise ConfigError(
            f"the work directory {any_path(workdir)}: process {', '.join(map(str, without))} does"
            " not see what process 0 writes there; choose a directory that all processes share"
            " with --workdir"
        )


def restore_or_start(
    config: ConfigDict,
    saved: Checkpoints,
    fresh_state: Callable[[], TrainState],
    shapes: TrainState,
    shardings: TrainState,
) -> tuple[TrainState, str]:
    """Restores the run's newest checkpoint, or else starts from weights or from scratch.

    Returns:
      The state, sharded, and its origin in words.
    """
    state = saved.restore_latest(with_shardings(shapes, shardings))
    if state is not None:
        if state.step > config.steps:
            raise ConfigError(
                f"config.steps={config.steps}, but the run in {saved.directory.parent} has made"
                f" {state.step} steps already"
            )
        return state, "resumed" + "".join(f", {change}" for change in saved.changes)
    state = jax.jit(fresh_state, out_shardings=shardings)()
    return start_from_weights(config, state) if config.init else (state, "from scratch")


def start_from_weights(config: ConfigDict, state: TrainState) -> tuple[TrainState, str]:
    """Loads the weights of `config.init` into a fresh state.

    Returns:
      The state, and a sentence for the log that says what was loaded from where.

    Raises:
      ConfigError: if there is no such source.
      CheckpointError: if it cannot be read, or its backbone belongs to another model.
    """
    # What adapts a layer is in no source, and starts as initialized.
    params, low_rank = split_low_rank(state.params)
    fresh = {"params": params, "batch_stats": state.batch_stats}
    window = config.model.backbone.get("window")
    variables, origin = initial_weights.load_initial_weights(
        config.init, fresh, config.variant, window
    )
    variables["params"] = join_frozen(variables["params"], low_rank)
    ema = None if state.ema is None else jax.tree.map(jnp.copy, variables["params"])
    return state.replace(**variables, ema=ema), origin


def describe(
    report: Report, config: ConfigDict, mesh: jax.sharding.Mesh, state: TrainState, origin: str
):
    """Prints the header of the run and writes the resolved config and the manifest.

    Args:
      report: prints the header. The files are written to its work directory.
      config: the resolved config.
      mesh: the device mesh.
      state: the state the run begins with.
      origin: where that state comes from, for the header.
    """
    training, evaluation = trained_on(config.data), evaluated_on(config.data)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    report.header(
        {
            "config": config.variant,
            "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
            "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
            "mesh": ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
            "kernels": kernels.describe_kernels(config.model),
            "deterministic": str(config.deterministic),
            "parameters": f"{parameters / 1e6:.2f} M",
            "global batch": f"{config.batch_size} images of {tuple(config.data.crop_hw)}",
            "training": training.summary(),
            "evaluation": evaluation.summary(),
            **describe_choice(config),
            "start": origin,
        }
    )
    weights = fingerprint(state.params)
    if report.enabled:
        write_text(report.workdir / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")
        write_manifest(
            report.workdir,
            {
                "start": origin,
                "initial_weights" if int(state.step) == 0 else "weights": weights,
                "global_batch": config.batch_size,
                "mesh": dict(mesh.shape),
            },
        )


def evaluate_now(config, model, state, mesh, directory, report, stop_signal) -> dict | None:
    """Evaluates the state and reports its scores.

    Returns:
      The scores to save with the checkpoint, or None if the evaluation was asked to stop.
    """
    step = int(state.step)
    where = pathlib.Path("predictions", f"step_{step:06d}")
    pictures = directory.folder / where
    try:
        scores = evaluate(
            model,
            state.variables(),
            config,
            mesh,
            pictures=pictures,
            stop=lambda: stop_signal.arrived,
        )
    except Stopped:
        return None
    classes = evaluated_on(config.data).dataset.classes
    report_evaluation(report, step, scores, classes)
    if report.enabled:
        write_evaluation(directory.folder, scores, classes, what_was_evaluated(config, step))
        report.message(f"val mIoU = {scores.miou:.3f}")
        report.message(f"pictures in {directory.path / where}")
        report.pictures(step, pictures)
    return scores.reported()
