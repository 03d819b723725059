"""`mda reproduce` for those who clone: repeat a finished run and compare every value."""

from mda.programs import start

if __name__ == "__main__":
    start("reproduce")
