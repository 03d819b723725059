"""Sparse autoencoders: loading the files of three libraries, training, and quality."""
