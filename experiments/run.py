"""`mda run` for those who clone: one arm of the experiment."""

from mda.programs.run import start

if __name__ == "__main__":
    start()
