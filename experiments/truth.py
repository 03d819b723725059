"""`mda truth` for those who clone: how well estimators predict the effect of retraining."""

from mda.programs import start

if __name__ == "__main__":
    start("truth")
