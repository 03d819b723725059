"""Mechanistic data attribution: which training samples made a unit of a language model."""
