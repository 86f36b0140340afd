"""Lists the peak rates and memory of accelerators, per JAX device, from the makers' data sheets.

Sources are https://docs.cloud.google.com/tpu/docs (v5e, v5p, v6e) and NVIDIA's data sheets of H100
and H200 SXM. The bandwidth between chips is that of one direction, half of the bidirectional one.

`GPU_TARGETS` describes GPUs as XLA's GpuTargetConfigProto, which XLA needs to compile for an absent
GPU. Its figures are those of the CUDA programming guide for compute capability 9.0.
"""

from dataclasses import dataclass

from jaxseg.errors import ConfigError


@dataclass(frozen=True)
class Chip:
    """One device of an accelerator, as its data sheet describes it.

    Attributes:
      memory_bytes: the memory of one device; on TPUs, what the compiler lets a program use.
      flops: bfloat16 operations per second.
      memory_bandwidth: bytes per second between the device and its memory.
      link_bandwidth: bytes per second that a device can send within a slice or a node.
      network_bandwidth: bytes per second, a device's share of its host's network.
      platform: the name of the JAX platform.
      clock: cycles per second of a TPU: its peak over the operations of all its matrix units in a
        cycle, 4 units of 128 × 128 in v5e, 8 of them in v5p, and 4 of 256 × 256 in v6e.
    """

    memory_bytes: float
    flops: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    platform: str = "tpu"
    clock: float = 0.0

    def peak_flops(self, dtype: str) -> float | None:
        """Returns the operations per second in a type, or None for a type that is not listed.

        By default, JAX multiplies float32 matrices as bfloat16 on a TPU. On a GPU it multiplies
        them as TF32, whose rate in the data sheets is half of that of bfloat16.
        """
        rates = {"bfloat16": self.flops}
        rates["float32"] = self.flops if self.platform == "tpu" else self.flops / 2
        return rates.get(dtype)


# Memory, operations, and the bandwidths of memory, links and network.
CHIPS = {
    "v5e": Chip(15.75 * 2**30, 197e12, 819e9, 200e9, 3.1e9, clock=1.5e9),
    "v5p": Chip(95.73 * 2**30, 459e12, 2765e9, 600e9, 6.25e9, clock=1.75e9),
    "v6e": Chip(31.24 * 2**30, 918e12, 1600e9, 400e9, 12.5e9, clock=1.75e9),
    "h100": Chip(80e9, 989e12, 3350e9, 450e9, 50e9, "cuda"),
    "h200": Chip(141e9, 989e12, 4800e9, 450e9, 50e9, "cuda"),
}


def find_chip(name: str) -> Chip:
    """Returns the chip of a name, such as "v5e".

    Raises:
      ConfigError: for an unknown name, with the known ones.
    """
    if name not in CHIPS:
        raise ConfigError(f"unknown chip {name!r}; the known chips are {', '.join(CHIPS)}")
    return CHIPS[name]


def chip_of_device(device_kind: str) -> Chip | None:
    """Returns the chip of a JAX device kind, such as "TPU v5 lite", or None if it is unknown."""
    words = device_kind.lower().replace(" lite", "e").split()
    # The data sheets above are those of whole GPUs in SXM form; MIG makes devices of parts of one.
    if {"pcie", "nvl", "mig"} & set(words):
        return None
    if words[-1] == "v5":  # JAX's name for v5p
        words.append("v5p")
    return next((chip for name, chip in CHIPS.items() if name in words), None)


_HOPPER = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 minor: 0 }}
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800
  memory_bandwidth: {bandwidth}
  device_memory_size: {memory}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""
GPU_TARGETS = {
    "h100": _HOPPER.format(
        bandwidth=3_350_000_000_000, memory=80_000_000_000, name="NVIDIA H100 80GB HBM3"
    ),
    "h200": _HOPPER.format(bandwidth=4_800_000_000_000, memory=141_000_000_000, name="NVIDIA H200"),
}
