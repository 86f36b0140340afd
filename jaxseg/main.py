"""Trains, evaluates, shows or compiles a recipe.

python -m jaxseg.main --config configs/cityscapes.py [--mode MODE] [--workdir RUN]
"""

import os
import re
import sys
from collections.abc import Sequence

from absl import app, flags, logging

from jaxseg import configure_cpu
from jaxseg.config import load_config, readable_errors
from jaxseg.errors import ConfigError, exit_with_message

MODES = {
    "train": "train, or resume the run in the work directory",
    "eval": "evaluate the work directory's best checkpoint, or --checkpoint",
    "show": "print the resolved config and the model's costs, check the data, draw samples",
    "compile": "report memory and estimated step time on a topology that you do not have",
}
FLAGS = flags.FLAGS
CONFIG = flags.DEFINE_string("config", None, "FILE[:VARIANT]; override with --config.KEY=VALUE")
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "directory of the run, or gs://BUCKET/PATH; default runs/VARIANT",
)
MODE = flags.DEFINE_enum("mode", "train", list(MODES), "; ".join(map(": ".join, MODES.items())))
# For --mode compile: nothing runs, and no device is looked for. At O1, XLA compiles in less than
# half the time of O2.
ABSENT_DEVICES = {
    "JAX_OPTIMIZATION_LEVEL": "O1",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # the report reads the compiled program itself
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "eval: a run's directory, checkpoints/STEP, zoo:NAME or hf://OWNER/REPOSITORY",
)

FORMAT_ONLY = flags.DEFINE_bool(
    "format-only",
    False,
    "eval: write class maps for a test server instead of scores; needs no labels (Cityscapes,"
    " ADE20K)",
)
TOPOLOGY = flags.DEFINE_string("topology", None, "compile: CHIP:SHAPE, such as v5e:16x16, h100:8")
SLICES = flags.DEFINE_integer(
    "slices", 1, "compile: number of slices of that topology", lower_bound=1
)
WHAT = flags.DEFINE_enum("what", "train", ["train", "eval"], "compile: the program")


def help_text() -> str:
    """Returns the modes and the flags, for --help."""
    modes = [f"  {mode:<13} {text}" for mode, text in MODES.items()]
    own = (CONFIG, WORKDIR, CHECKPOINT, FORMAT_ONLY, TOPOLOGY, SLICES, WHAT)
    rows = [f"  --{flag.name:<11} {FLAGS[flag.name].help}" for flag in own]
    return "\n".join([str(__doc__), "modes:", *modes, "", "flags:", *rows])


def parse(arguments: list[str]) -> list[str]:
    """Parses the flags; returns the program's name and the settings, --config.KEY=VALUE.

    Raises:
      ConfigError: for a flag that does not exist or has no such value, and for other arguments.
    """
    settings, own, left = [], [], list(arguments)
    while left:
        argument = left.pop(0)
        if not re.match(r"--?(no)?config\.", argument):
            own.append(argument)
            continue
        if "=" not in argument and left and not left[0].startswith("-"):
            argument = f"{argument}={left.pop(0)}"
        settings.append(argument)
    with readable_errors():
        program, *rest = FLAGS(own)
    if rest:
        raise ConfigError(f"unexpected argument {rest[0]!r}; a setting is --config.KEY=VALUE")
    return [program, *settings]


def run_mode(arguments: Sequence[str]):
    """Runs the mode that the flags name; `arguments` are those that `parse` leaves."""
    _, *overrides = arguments
    if MODE.value == "compile":
        os.environ.update(ABSENT_DEVICES | os.environ)  # before jax is imported

    import jax

    from jaxseg.distributed import processes, start

    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
        start.quiet_orbax()
    start.use_compile_cache()
    if CONFIG.value:
        # To show data without a file of class names is to propose one.
        config = load_config(CONFIG.value, overrides, classes_needed=MODE.value != "show")
        workdir = WORKDIR.value or f"runs/{config.variant}"
    elif MODE.value != "eval":
        raise ConfigError("--config FILE[:VARIANT] is needed, e.g. --config configs/cityscapes.py")
    elif not WORKDIR.value:
        raise ConfigError(
            "--workdir is needed to evaluate without --config: the directory of the results"
        )
    else:
        config, workdir = None, WORKDIR.value
    if TOPOLOGY.value and MODE.value != "compile":
        raise ConfigError("--topology describes absent devices: it needs --mode compile")

    if MODE.value in ("train", "eval"):
        processes.start(preemptible=MODE.value == "train")
    if MODE.value != "compile":
        start.check_platform()
        if jax.process_index() != 0 and not FLAGS["verbosity"].present:
            logging.set_verbosity(logging.ERROR)  # process 0 speaks for all
    if MODE.value == "train":
        from jaxseg.train import train

        with processes.ending_together():
            train(config, workdir)
    elif MODE.value == "eval":
        from jaxseg.evaluate import evaluate_checkpoint, write_submission

        task = write_submission if FORMAT_ONLY.value else evaluate_checkpoint
        with processes.ending_together(lambda: "evaluation"):
            task(CHECKPOINT.value or workdir, workdir, config, overrides)
    elif MODE.value == "compile":
        from jaxseg.compile import compile_recipe

        if TOPOLOGY.value is None:
            raise ConfigError("--topology CHIP:SHAPE is needed, such as --topology v5e:16x16")
        compile_recipe(config, TOPOLOGY.value, SLICES.value, WHAT.value, workdir)
    else:
        from jaxseg.show import show

        show(config, workdir)


def main(arguments: Sequence[str] | None = None):
    """The command line. Errors that the user can mend are printed without a traceback."""
    configure_cpu()
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(help_text())
        return
    with exit_with_message("jaxseg"):
        app.run(run_mode, argv=[sys.argv[0], *arguments], flags_parser=parse)


if __name__ == "__main__":
    main()
