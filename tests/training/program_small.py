"""A program as those of experiments/ are, for the tests: trains `train_small` for half a minute."""

from contextlib import closing
from pathlib import Path

from mda.config import main


class Resource:
    """Something that has to be closed, as the log of a run is."""

    def close(self) -> None:
        print("closed", flush=True)


def program(config, folder):
    from train_small import run

    with closing(Resource()):
        run(Path(config.output_dir) / "small", {"devices": config.training.devices}, 9000)


if __name__ == "__main__":
    main(program, ("training",))
