"""Scores of training samples: curvature, influence functions, baselines."""
