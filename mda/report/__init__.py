"""Figures, pages, tables and W&B reports: drawing, no statistics."""
