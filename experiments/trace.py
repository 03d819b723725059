"""`mda trace` for those who clone: trace a unit back to training samples."""

from mda.programs import start

if __name__ == "__main__":
    start("trace")
