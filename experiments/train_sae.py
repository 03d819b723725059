"""`mda train_sae` for those who clone: train a sparse autoencoder on a base run."""

from mda.programs import start

if __name__ == "__main__":
    start("train_sae")
