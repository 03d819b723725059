"""Training on a fixed schedule: optimizers, checkpoints, exact resumption."""
