"""Edits of the training data: choosing samples or tokens, and changing their weights."""
