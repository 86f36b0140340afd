"""Who may import whom (ARCHITECTURE.md), read from the source."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MODELS = {"jaxseg.models", "jaxseg.distributed.sharding", "pallas_kernels"}
MODELS |= {"jaxseg.ops", "jaxseg.errors"}
FILE_READERS = {"converters", "jaxseg.errors"}
# What a file or folder may import of the project; and libraries that only some may import.
ALLOWED = {
    "pallas_kernels": {"pallas_kernels"},
    "converters": {"converters", "jaxseg"},
    "converters/rules.py": {"jaxseg.parameter_paths"},
    "converters/fill.py": set(),
    "converters/torch_files/torch_file.py": FILE_READERS,
    "converters/torch_files/torch_writer.py": FILE_READERS,
    "converters/state_dict.py": FILE_READERS,
    "configs": {"jaxseg.recipes.base", "jaxseg.recipes.internimage", "jaxseg.recipes.vit_adapter"},
    "jaxseg/errors.py": set(),
    "jaxseg/parameter_paths.py": set(),
    "jaxseg/models/transfer.py": set(),
    "jaxseg/ops/resize.py": set(),
    "jaxseg/ops/position_tables.py": {"jaxseg.errors"},
    "jaxseg/models/kernels.py": {"jaxseg.errors", "pallas_kernels"},
    "jaxseg/evaluation/metrics.py": set(),
    "jaxseg/reporting/visualize.py": set(),
    "jaxseg/evaluation/charts.py": set(),
    "jaxseg/config.py": {"jaxseg.errors"},
    "jaxseg/zoo/download.py": {"jaxseg.errors"},
    "jaxseg/zoo/catalogue.py": {"jaxseg.zoo.download", "jaxseg.errors"},
    "jaxseg/training/optimizer.py": {"jaxseg.training.parameter_groups", "jaxseg.parameter_paths"},
    "jaxseg/training/parameter_groups.py": {"jaxseg.errors"},
    "jaxseg/losses/cross_entropy.py": {"jaxseg.ops.resize"},
    "jaxseg/losses/point_sampling.py": set(),
    "jaxseg/losses/matcher.py": {"jaxseg.losses", "jaxseg.distributed.sharding"},
    "jaxseg/losses/mask2former.py": {
        "jaxseg.losses.matcher",
        "jaxseg.distributed.sharding",
        "jaxseg.losses.point_sampling",
    },
    "jaxseg/inference/segments.py": {"jaxseg.ops.resize"},
    "jaxseg/distributed/sharding.py": {"jaxseg.errors", "jaxseg.parameter_paths"},
    "jaxseg/distributed/multihost.py": {"jaxseg.errors"},
    "jaxseg/distributed/processes.py": {"jaxseg.errors"},
    "jaxseg/inference/sliding_window.py": {"jaxseg.errors", "jaxseg.ops.resize"},
    "jaxseg/inference/batcher.py": {"jaxseg.models", "jaxseg.distributed.sharding"},
    "jaxseg/inference/tiles.py": {"jaxseg.inference.sliding_window"},
    "jaxseg/inference/windowed_view.py": {
        "jaxseg.inference.tiles",
        "jaxseg.inference.batcher",
        "jaxseg.inference.sliding_window",
    },
    "jaxseg/inference/predictor.py": {
        "jaxseg.inference.tiles",
        "jaxseg.data.views",
        "jaxseg.models",
    }
    | {
        "jaxseg.inference.batcher",
        "jaxseg.inference.windowed_view",
        "jaxseg.inference.sliding_window",
    },
    "jaxseg/inference/image_sizes.py": {"jaxseg.data.views", "jaxseg.errors", "jaxseg.models"}
    | {"jaxseg.inference.sliding_window"},
    "jaxseg/models": MODELS,
    "jaxseg/data": {"jaxseg.data", "jaxseg.errors", "jaxseg.config"},
}
ONLY_IN = {
    "orbax": {"jaxseg/checkpoints/manager.py"},
    "cv2": {"jaxseg/data", "jaxseg/reporting/visualize.py", "jaxseg/predict.py", "jaxseg/show.py"}
    | {"jaxseg/evaluation/gallery.py"},
    "flax": {"jaxseg/models", "jaxseg/training/step.py"},
    "grain": {"jaxseg/data"},
    "array_record": {"jaxseg/data/readers/packed.py", "jaxseg/data/pack.py"},
    "tensorflow_datasets": {"jaxseg/data/readers/tfds.py"},
    "isal": {"jaxseg/data/decoding/png.py"},
    "scipy": {"jaxseg/ops/position_tables.py", "jaxseg/inference/sliding_window.py"},
    "converters": {"converters", "jaxseg/checkpoints/initial_weights.py"},
}
NEVER = {
    "jaxseg/data": {"jax", "flax"},
    "jaxseg": {"torch", "tensorflow", "jaxseg.main"},
    "converters": {"torch", "pickle", "jaxseg.main", "jaxseg.train"},
}
FILES = [
    file
    for package in ("jaxseg", "pallas_kernels", "converters", "configs")
    for file in sorted((ROOT / package).rglob("*.py"))
]


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


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_one_way(file):
    own = {"jaxseg", "pallas_kernels", "converters", "configs"}
    for name in imports(file):
        for place, allowed in ALLOWED.items():
            if inside(file, [place]) and below(name, own):
                assert below(name, allowed), name
        for library, places in ONLY_IN.items():
            assert not below(name, {library}) or inside(file, places), name
        for place, refused in NEVER.items():
            assert not inside(file, [place]) or not below(name, refused), name
