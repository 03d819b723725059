"""`mda reproduce` for those who clone: a finished run again, every value compared."""

from mda.programs.reproduce import start

if __name__ == "__main__":
    start()
