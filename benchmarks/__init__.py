"""Measurements, each of which writes the page beside it."""
