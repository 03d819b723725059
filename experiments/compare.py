"""`mda compare` for those who clone: the effects of edits, beside those of random edits."""

from mda.programs import start

if __name__ == "__main__":
    start("compare")
