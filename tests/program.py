"""A program for the tests: prints what it was given and which heavy packages are loaded.

It stands in for the programs of experiments/.
"""

import atexit
import sys

from mda.config import compose, main
from mda.schema import ConfigError

HEAVY = ("torch", "transformers", "pytorch_lightning", "wandb", "datasets", "matplotlib", "numpy")
NEEDS = (
    "data", "model", "training", "emergence", "unit", "estimator", "intervention", "capabilities",
    "logger",
)  # fmt: skip


def program(config, folder):
    if config.seed == 13:
        raise ConfigError("data.path=a.npy is invalid; expected a file that exists")
    compose()  # as programs of many jobs do; a sweep must go on as before
    print(type(config).__name__, type(config.estimator).__name__, config.seed, folder)


if __name__ == "__main__":
    atexit.register(lambda: print("heavy:", *(name for name in HEAVY if name in sys.modules)))
    main(program, NEEDS)
