"""`mda truth` for those who clone: how well estimators predict what retraining does to a unit."""

from mda.programs.truth import start

if __name__ == "__main__":
    start()
