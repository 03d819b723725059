"""Building models; one adapter for each family describes its packing of heads and neurons."""
