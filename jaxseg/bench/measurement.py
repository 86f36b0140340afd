"""A measurement: the one schema of all result files, and its form as text."""

import dataclasses
import datetime
from typing import Any

from jaxseg.bench.timing import Seconds, format_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was measured of a recipe. A figure that does not apply or is not known is None.

    Attributes:
      what: "train" (a train step), "infer" (a forward pass) or "data" (the input pipeline).
      recipe: FILE:VARIANT, without the folder of the file and its suffix.
      overrides: settings that differ from the recipe, KEY=VALUE, without the paths of the data.
      device: the kind of device, as JAX names it. For "data", the processor.
      devices: the number of devices. For "data", of the processor's cores.
      batch: images in a batch, over all devices.
      dtype: the type of the computation.
      image_hw: height and width of an image, in pixels. For "infer" of a recipe with windows, of a
        window.
      images_per_second: `batch` over the median time.
      seconds: the times of the steps.
      compile_seconds: the time to trace and compile the program.
      compiled_before: whether JAX's compilation cache had the program.
      peak_memory_bytes: the most memory in use on any device of this process, since its start.
      flops_per_image: the model's own operations for an image (`jaxseg.aot.utilization`).
      mfu: these operations over the time and the peak of the devices, from 0 to 1.
      data_share: the share of the time that was spent waiting for data.
      workers: the processes that read data.
      limit: why the next larger batch was not measured, if the largest was searched.
      kernels: the kernels alone.
      kernels_refused: the kernels that XLA had to replace, with the reasons.
      tuned: whether block sizes of the GPU kernels are known for this device.
      versions: the versions of Python and of the packages.
      date: the day of the measurement.
    """

    what: str
    recipe: str
    overrides: list[str]
    device: str
    devices: int
    batch: int
    dtype: str | None = None
    image_hw: tuple[int, int]
    images_per_second: float
    seconds: Seconds
    compile_seconds: float | None = None
    compiled_before: bool | None = None
    peak_memory_bytes: int | None = None
    flops_per_image: float | None = None
    mfu: float | None = None
    data_share: float | None = None
    workers: int | None = None
    limit: str | None = None
    kernels: str | None = None
    kernels_refused: dict[str, str] = dataclasses.field(default_factory=dict)
    tuned: bool | None = None
    versions: dict[str, str]
    date: str = dataclasses.field(default_factory=lambda: datetime.date.today().isoformat())

    def as_json(self) -> dict[str, Any]:
        """Returns the measurement as the object of a result file."""
        return dataclasses.asdict(self)

    def text(self) -> str:
        """Returns the figures for a person to read."""
        height, width = self.image_hw
        seconds = self.seconds
        milliseconds = [format_number(1e3 * s) for s in (seconds.p50, seconds.p95, seconds.mean)]
        rows = {
            "batch": ", ".join(
                [f"{self.batch} of {height} x {width}", *filter(None, [self.dtype])]
            ),
            "speed": f"{format_number(self.images_per_second)} images/s",
            "time": "{} ms (p95 {}, mean {}, {} steps)".format(*milliseconds, seconds.steps),
        }
        if self.data_share is not None:
            rows["waiting"] = f"{self.data_share:.1%} of the time"
        if self.peak_memory_bytes is not None:
            rows["memory"] = f"{self.peak_memory_bytes / 1e9:.2f} GB a device at the peak"
        if self.compile_seconds is not None:
            cached = ", from the cache" if self.compiled_before else ""
            rows["compiled in"] = f"{self.compile_seconds:.1f} s{cached}"
        if self.flops_per_image is not None:
            rows["operations"] = f"{self.flops_per_image / 1e9:,.2f} G an image"
            unknown = "not known: the peak of this device and type is not listed"
            rows["MFU"] = unknown if self.mfu is None else f"{self.mfu:.1%}"
        if self.limit:
            rows["next batch"] = self.limit
        changes = "".join(f", {change}" for change in self.overrides)
        title = f"{self.what} of {self.recipe}{changes} on {self.devices} x {self.device}"
        return "\n".join([title, *(f"  {name:<13}{row}" for name, row in rows.items())])
