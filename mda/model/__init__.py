"""Building models; one adapter for each family says how it packs heads and neurons."""
