"""The points that a recorded training of Mask2Former compared masks at, for the loss to take."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.losses import mask2former


def replay(recording, config):
    """From now on, the loss takes the recorded points instead of drawing some.

    Which of them is known by the random key: there are two for every step, prediction and image.

    Returns:
      A list that gets the class, mask and dice losses of all predictions at every step.
    """
    recorded = recorded_points(recording, config)
    matching_keys, comparison_keys = loss_keys(config, recording["inputs/labels"].shape[1])

    def of_key(key, keys, kind):
        found = jnp.all(jax.random.key_data(key) == keys, axis=1)
        (number,) = jnp.flatnonzero(found, size=1, fill_value=len(keys))
        return jnp.asarray(recorded[kind]).at[number].get(mode="fill")  # not found: NaN

    def random_points(key, num_points):  # called directly for matching only
        return of_key(key, matching_keys, "matching")

    def draw_comparison_points(key, mask_logits, assigned, num_points, _, importance_sample_ratio):
        # Recorded in the order of the queries; what is no target comes last.
        padding = jnp.arange(len(assigned)) >= of_key(key, comparison_keys, "targets")
        order = jnp.argsort(jnp.lexsort((assigned, padding)))
        return mask2former.comparison_points(
            mask_logits[assigned],
            of_key(key, comparison_keys, "candidates")[order],
            of_key(key, comparison_keys, "fresh")[order],
            int(importance_sample_ratio * num_points),
        )

    reports, normalized = [], mask2former.normalized

    def reported(*sums):
        losses = normalized(*sums)
        jax.debug.callback(reports.append, losses, ordered=True)
        return losses

    mask2former.random_points = random_points
    mask2former.draw_comparison_points = draw_comparison_points
    mask2former.normalized = reported
    return reports


def recorded_points(recording, config):
    """The points for matching, candidates and fresh points, and the number of targets.

    In the order of drawing; the first axis is (step, prediction, image). The original drew points
    to match at for each image; then candidates for all matched queries of the batch, and then
    fresh points for them.
    """
    random = np.random.default_rng(int(recording["rand/seed"]))
    draws = [random.random(shape, np.float32) for shape in recording["rand/shapes"].tolist()]
    np.testing.assert_array_equal(draws[0], recording["rand/first"])
    np.testing.assert_array_equal(draws[-1], recording["rand/last"])
    batches, draws = recording["inputs/labels"], iter(draws)
    points = {"matching": [], "candidates": [], "fresh": [], "targets": []}
    for step in range(config.steps):
        targets = [len(np.setdiff1d(label, 255)) for label in batches[step % len(batches)]]
        for _ in range(predictions_of(config)):
            points["targets"] += targets
            points["matching"] += [next(draws)[0] for _ in targets]
            for kind in ("candidates", "fresh"):
                for drawn in np.split(next(draws), np.cumsum(targets)[:-1]):
                    padding = config.loss.mask2former.max_targets - len(drawn)
                    points[kind].append(np.pad(drawn, ((0, padding), (0, 0), (0, 0))))
    assert not list(draws)
    return {kind: np.stack(arrays) for kind, arrays in points.items()}


def loss_keys(config, images):
    """The keys for matching and those for comparing, as data, in the order of drawing."""
    keys = []
    for step in range(config.steps):
        of_step = jax.random.fold_in(jax.random.key(config.seed), step)
        of_loss = jax.random.fold_in(of_step, 1)
        of_predictions = jax.random.split(of_loss, (2, predictions_of(config), images))
        keys.append(jax.random.key_data(of_predictions))
    keys = np.stack(keys, axis=1)
    return keys.reshape(2, -1, keys.shape[-1])


def predictions_of(config):
    return config.model.decode_head.decoder_layers + 1
