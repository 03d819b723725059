"""Training on a fixed stream: optimizers, checkpoints, exact resumption."""
