"""Who may import whom (ARCHITECTURE.md), read from the source."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MODELS = {"jaxseg.models", "jaxseg.parallel", "jaxseg.resize", "pallas_kernels"}
MODELS |= {"jaxseg.kernels", "jaxseg.position_tables"}
FILE_READERS = {"converters", "jaxseg.errors"}
# What a file or folder may import of the project; and libraries that only some may import.
ALLOWED = {
    "pallas_kernels": {"pallas_kernels"},
    "converters": {"converters", "jaxseg"},
    "converters/rules.py": {"jaxseg.paths"},
    "converters/fill.py": set(),
    "converters/torch_file.py": FILE_READERS,
    "converters/torch_writer.py": FILE_READERS,
    "converters/state_dict.py": FILE_READERS,
    "configs": {"configs.common", "configs.internimage", "configs.vit_adapter"},
    "jaxseg/errors.py": set(),
    "jaxseg/paths.py": set(),
    "jaxseg/transfer.py": set(),
    "jaxseg/resize.py": set(),
    "jaxseg/position_tables.py": {"jaxseg.errors"},
    "jaxseg/kernels.py": {"jaxseg.errors", "pallas_kernels"},
    "jaxseg/metrics.py": set(),
    "jaxseg/visualize.py": set(),
    "jaxseg/charts.py": set(),
    "jaxseg/config_files.py": {"jaxseg.errors"},
    "jaxseg/download.py": {"jaxseg.errors"},
    "jaxseg/zoo.py": {"jaxseg.download", "jaxseg.errors"},
    "jaxseg/optim.py": {"jaxseg.parameter_groups", "jaxseg.paths"},
    "jaxseg/parameter_groups.py": {"jaxseg.errors"},
    "jaxseg/losses.py": {"jaxseg.resize"},
    "jaxseg/points.py": set(),
    "jaxseg/matching.py": {"jaxseg.losses", "jaxseg.parallel"},
    "jaxseg/mask_losses.py": {"jaxseg.matching", "jaxseg.parallel", "jaxseg.points"},
    "jaxseg/segments.py": {"jaxseg.resize"},
    "jaxseg/parallel.py": {"jaxseg.errors", "jaxseg.paths"},
    "jaxseg/agreement.py": {"jaxseg.errors"},
    "jaxseg/processes.py": {"jaxseg.errors"},
    "jaxseg/windows.py": {"jaxseg.errors", "jaxseg.resize"},
    "jaxseg/network.py": {"jaxseg.models", "jaxseg.parallel"},
    "jaxseg/averaging.py": {"jaxseg.windows"},
    "jaxseg/windowed_view.py": {"jaxseg.averaging", "jaxseg.network", "jaxseg.windows"},
    "jaxseg/inference.py": {"jaxseg.averaging", "jaxseg.data.views", "jaxseg.models"}
    | {"jaxseg.network", "jaxseg.windowed_view", "jaxseg.windows"},
    "jaxseg/image_sizes.py": {"jaxseg.data.views", "jaxseg.errors", "jaxseg.models"}
    | {"jaxseg.windows"},
    "jaxseg/models": MODELS,
    "jaxseg/data": {"jaxseg.data", "jaxseg.errors", "jaxseg.config_files"},
}
ONLY_IN = {
    "orbax": {"jaxseg/checkpoints.py"},
    "cv2": {"jaxseg/data", "jaxseg/visualize.py", "jaxseg/predict.py", "jaxseg/show.py"}
    | {"jaxseg/gallery.py"},
    "flax": {"jaxseg/models", "jaxseg/train_step.py"},
    "grain": {"jaxseg/data"},
    "array_record": {"jaxseg/data/packed.py", "jaxseg/data/pack.py"},
    "tensorflow_datasets": {"jaxseg/data/tfds_source.py"},
    "isal": {"jaxseg/data/png.py"},
    "scipy": {"jaxseg/position_tables.py", "jaxseg/windows.py"},
    "converters": {"converters", "jaxseg/initial_weights.py"},
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
