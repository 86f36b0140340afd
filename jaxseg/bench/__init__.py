"""Measures a recipe on the devices at hand: train step, forward pass and input pipeline."""
