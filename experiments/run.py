"""`mda run` for those who clone: one arm of the experiment."""

from mda.programs import start

if __name__ == "__main__":
    start("run")
