"""The packages of this project that are installed beside jaxseg."""

import importlib.machinery
import importlib.util
import pathlib
import sys


def claim(name: str):
    """Makes `import NAME` find the package that was installed with jaxseg.

    `python -m` looks in the working directory first, where a user may have a package of the same
    name, such as `converters`.
    """
    beside = str(pathlib.Path(__file__).parent.parent)
    spec = importlib.machinery.PathFinder.find_spec(name, [beside])
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"{name} is not installed beside jaxseg; install jaxseg again")
    if getattr(sys.modules.get(name), "__file__", None) != spec.origin:
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
