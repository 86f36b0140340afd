"""Trains as a recording says, in float64: python train_in_float64.py FILE OUTPUT.

Where jaxseg wants precision, it says float32. So this program gives that name to float64 before
anything of jaxseg is imported, which takes a process of its own. OUTPUT is an .npz file with the
fields of a `Trajectory`, and of Mask2Former all losses as parts/NAME, [steps, predictions].
"""

import pathlib
import sys

import jax
import jax.numpy as jnp

from support.reference_files import Recording


def main(file, output):
    jax.config.update("jax_enable_x64", True)
    jnp.float32 = jnp.float64
    import numpy as np

    from support import recorded_internimages, recorded_vits
    from support.recorded_points import replay
    from support.trajectories import train

    recording = Recording(pathlib.Path(file))
    is_internimage = bool(recording.hparams)
    recorded = recorded_internimages if is_internimage else recorded_vits
    config = recorded.config_of(recording, "float64")
    reports = []
    if is_internimage:
        recorded_internimages.follow_reference_grid()
    elif recorded_vits.is_mask2former(recording):
        reports = replay(recording, config)
    batches = recorded.batches_of(recording)
    result = train(config, recording["final/names"].tolist(), batches)
    jax.effects_barrier()
    parts = {name: [losses[name] for losses in reports] for name in (reports[0] if reports else ())}
    np.savez(
        output,
        losses=result.losses,
        gradient_norms=result.gradient_norms,
        **{f"parts/{name}": values for name, values in parts.items()},
        **{f"first_norms/{name}": norm for name, norm in result.first_norms.items()},
        **{f"final/{name}": value for name, value in result.final.items()},
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
