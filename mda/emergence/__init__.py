"""Measuring the metrics of units along a run, and when they appear."""
