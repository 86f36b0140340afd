"""Serves a page to try a model, and an endpoint for programs.

    jaxseg serve --model NAME|FILE|RUN [--port 7860]

The page takes an image and shows the classes over it. Programs send an image file to /segment and
get JSON or PNG. The server listens on 127.0.0.1 unless told otherwise.
"""

import argparse
import contextlib
import math
import pathlib
from collections.abc import Sequence

import jax

from jaxseg import configure_cpu, pretrained
from jaxseg.distributed import start
from jaxseg.errors import ConfigError, exit_with_message
from jaxseg.segmenter import Segmenter
from jaxseg.serve.limits import Limits

LOOPBACK_ADDRESSES = ("127.0.0.1", "localhost", "::1")


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="jaxseg serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    pretrained.add_arguments(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; default 127.0.0.1, which only this machine reaches",
    )
    parser.add_argument("--port", type=int, default=7860, help="default 7860; 0 takes a free one")
    parser.add_argument(
        "--max-megabytes",
        type=_positive,
        default=Limits().upload_bytes / 1e6,
        metavar="N",
        help="largest upload; default 32",
    )
    parser.add_argument(
        "--max-megapixels",
        type=_positive,
        default=Limits().pixels / 1e6,
        metavar="N",
        help="largest image; default 32",
    )
    options = parser.parse_args(arguments)
    if not 0 <= options.port < 2**16:
        parser.error("--port must be from 0 to 65535")
    limits = Limits(
        upload_bytes=round(options.max_megabytes * 1e6), pixels=round(options.max_megapixels * 1e6)
    )
    configure_cpu()
    with exit_with_message("jaxseg serve"):
        serve(options.model, options.config, options.host, options.port, limits)


def serve(model: str, config: str | None, host: str, port: int, limits: Limits):
    """Loads a model and answers requests until the process is told to end.

    Args:
      model: what `Segmenter.from_pretrained` takes.
      config: the config of a PyTorch file, or None.
      host: the address to listen on.
      port: the port; 0 takes a free one.
      limits: what requests may take.

    Raises:
      CheckpointError: if there is no such model, or it cannot be downloaded or converted.
      ConfigError: for an address that is taken, an unknown name, or if packages are missing.
      OutputError: if the cache cannot be written.
    """
    try:
        from jaxseg.serve.app import make_app
        from jaxseg.serve.guard import LOOPBACK
        from jaxseg.serve.server import bind, make_server, url_of
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the package {error.name} is missing; install those of the server:"
            " pip install 'jaxseg[serve]'"
        ) from error
    start.use_compile_cache()
    start.check_platform()
    with bind(host, port) as bound:  # before the model is loaded, which may take minutes
        segmenter = Segmenter.from_pretrained(model, config)
        hosts = LOOPBACK if host in LOOPBACK_ADDRESSES else None
        segmenters = [segmenter.on([device]) for device in jax.local_devices()]
        app = make_app(segmenters, pathlib.PurePath(model).name, limits, hosts)
        print(f"{model} at {url_of(bound)}, until Ctrl-C", flush=True)
        if hosts is None:
            print("everybody who reaches this address can use it; it has no password", flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again at the end
            make_server(app).run(sockets=[bound])


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError("must be positive")
    return value


if __name__ == "__main__":
    main()
