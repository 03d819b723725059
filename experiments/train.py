"""`mda train` for those who clone: train a base run."""

from mda.programs import start

if __name__ == "__main__":
    start("train")
