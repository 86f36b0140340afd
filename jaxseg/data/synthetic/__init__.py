"""Procedural street scenes with labels: a toy town, painted by code."""
