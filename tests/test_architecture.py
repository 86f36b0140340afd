"""Who may import whom: the house as a list of floors (ARCHITECTURE.md), read from the source."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# The rooms of jaxseg: its folders and the files beside them. A file imports from the floors below
# its own, or from its own room.
FLOORS = [
    ["errors"],
    ["atomic_files", "parameter_paths", "recipes", "siblings", "workdir"],
    ["config", "ops", "distributed", "zoo", "reporting"],
    ["models", "losses", "data"],
    ["training", "inference"],
    ["evaluation", "checkpoints", "aot", "predictions", "segmentation"],
    ["pretrained"],
    ["segmenter"],
    ["train", "evaluate", "show", "compile", "predict"]
    + ["export", "serve", "report", "selftest", "bench"],
    ["main"],
    ["__main__"],
]
FACE = {"jaxseg.configure_cpu"}
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# What runs up: training may start from a PyTorch file, and prediction too.
UPWARD = {
    ("jaxseg/checkpoints/initial_weights.py", "converters"),
    ("jaxseg/pretrained.py", "converters"),
}
# What the other packages and some of their files may import of the project.
BELOW_PROGRAMS = FACE | {f"jaxseg.{room}" for floor in FLOORS[:6] for room in floor}
PACKAGES = {
    "pallas_kernels": {"pallas_kernels"},
    "configs": {"jaxseg.recipes"},
    "converters": {"converters", "pallas_kernels.relative_positions", *BELOW_PROGRAMS},
    "converters/fill.py": set(),
    "converters/rules.py": {"jaxseg.parameter_paths"},
    "converters/torch_files": {"converters.torch_files", "jaxseg.errors"},
    "converters/state_dict.py": {"converters.torch_files", "jaxseg.errors"},
}
# Rooms that never meet, though their floors would let them.
NEVER = {
    "jaxseg/data": {"jax", "flax", "jaxseg.ops", "jaxseg.distributed", "jaxseg.zoo"},
    "jaxseg/losses": {"jaxseg.models", "flax"},
    "jaxseg/inference": {"jaxseg.losses", "jaxseg.training"},
    "jaxseg/reporting": {"jaxseg.zoo", "jaxseg.distributed"},
    "jaxseg/zoo": {"jax", "numpy"},
    "jaxseg": {"torch", "tensorflow"},
    "converters": {"torch", "pickle"},
}
# Libraries that only some files may import.
ONLY_IN = {
    "orbax": {"jaxseg/checkpoints"},
    "cv2": {
        "jaxseg/data",
        "jaxseg/evaluation/boundaries.py",
        "jaxseg/reporting/visualize.py",
        "jaxseg/predictions/video.py",
    },
    "av": {"jaxseg/predictions/video.py"},
    "flax": {"jaxseg/models", "jaxseg/training/state.py"},
    "grain": {"jaxseg/data"},
    "array_record": {"jaxseg/data/readers/packed.py", "jaxseg/data/pack.py"},
    "tensorflow_datasets": {"jaxseg/data/readers/tfds.py"},
    "starlette": {"jaxseg/serve"},
    "uvicorn": {"jaxseg/serve"},
    "huggingface_hub": {"jaxseg/zoo/hub.py"},
    "wandb": {"jaxseg/reporting/trackers.py"},
    "trackio": {"jaxseg/reporting/trackers.py"},
    "isal": {"jaxseg/data/decoding/png.py"},
    "scipy": {"jaxseg/ops/position_tables.py", "jaxseg/inference/sliding_window.py"},
}
OWN = {"jaxseg", "pallas_kernels", "converters", "configs"}
FILES = [file for package in sorted(OWN) for file in sorted((ROOT / package).rglob("*.py"))]


def imports(file):
    """Dotted names of everything a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def below(name, prefixes):
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def inside(file, places):
    return any(file.is_relative_to(ROOT / place) for place in places)


def room(file):
    """The room of a file of jaxseg; None for the face of the package."""
    first = file.relative_to(ROOT / "jaxseg").parts[0].removesuffix(".py")
    return None if first == "__init__" else first


def allowed(file, name):
    """Whether a file may import a name of the project."""
    if not file.is_relative_to(ROOT / "jaxseg"):
        return all(below(name, rule) for place, rule in PACKAGES.items() if inside(file, [place]))
    if not below(name, {"jaxseg"}):
        upward = {target for place, target in UPWARD if inside(file, [place])}
        return below(name, {"pallas_kernels", *upward})
    target, here = name.split(".")[1], room(file)
    if target not in FLOOR:  # of the face of the package
        return below(name, FACE)
    return here is None or target == here or FLOOR[target] < FLOOR[here]


def test_every_room_has_a_floor():
    rooms = {room(file) for file in FILES if file.is_relative_to(ROOT / "jaxseg")} - {None}
    assert rooms == set(FLOOR)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_down(file):
    for name in imports(file):
        if below(name, OWN):
            assert allowed(file, name), name
        for library, places in ONLY_IN.items():
            assert not below(name, {library}) or inside(file, places), name
        for place, refused in NEVER.items():
            assert not inside(file, [place]) or not below(name, refused), name


def test_what_runs_up_is_what_is_named():
    for place, target in UPWARD:
        assert any(below(name, {target}) for name in imports(ROOT / place))
