"""Paints procedural street scenes with labels: a toy town made by code alone."""
