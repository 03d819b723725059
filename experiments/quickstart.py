"""`mda quickstart` for those who clone: the whole causal result in one command."""

from mda.programs import start

if __name__ == "__main__":
    start("quickstart")
