"""Serves a model over HTTP: a page to try it, and an endpoint for programs."""
