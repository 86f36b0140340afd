"""Prepares JAX in the programs: the cache of compiled programs, and the platform."""

import logging as std_logging
import os
import pathlib
import sys
import warnings

import jax
from absl import logging

from jaxseg.errors import ConfigError, first_line


def quiet_orbax():
    """Hides the fifty lines that Orbax logs for each save, and what it leaves after a failed one.

    jaxseg reports a failed save itself. Orbax then leaves tasks that nobody awaits, each of which
    would print a traceback below that report.
    """
    logging.get_absl_handler().addFilter(lambda record: "orbax" not in record.pathname)
    std_logging.getLogger("asyncio").setLevel(std_logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
    print_error = sys.unraisablehook

    def print_others(failed):
        if str(failed.exc_value) != "Event loop is closed":
            print_error(failed)

    sys.unraisablehook = print_others


def use_compile_cache():
    """Keeps compiled programs between runs, so that the next run starts in seconds.

    They are kept in JAXSEG_COMPILE_CACHE, by default ~/.cache/jaxseg/compiled. An empty value keeps
    nothing.
    """
    folder = os.environ.get("JAXSEG_COMPILE_CACHE")
    if folder is None:
        try:
            folder = str(pathlib.Path.home() / ".cache/jaxseg/compiled")
        except RuntimeError:
            logging.warning(
                "this user has no home directory, so compiled programs are not kept; set"
                " JAXSEG_COMPILE_CACHE to a folder that keeps them"
            )
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)


def check_platform():
    """Checks that the devices that JAX_PLATFORMS asks for are there.

    Raises:
      ConfigError: if they are not, with the reason that JAX gives.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter if no plug-in knows its name
        asked = os.environ.get("JAX_PLATFORMS") or "(not set)"
        reason = first_line(error) or "JAX knows no such platform here"
        raise ConfigError(
            f"JAX_PLATFORMS={asked}: {reason}. Install jaxseg with the extra"
            " cuda or tpu, which brings the plug-in of the platform, or set JAX_PLATFORMS=cpu"
        ) from error
