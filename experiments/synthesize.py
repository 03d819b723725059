"""`mda synthesize` for those who clone: token rows made from motifs, and their controls."""

from mda.programs import start

if __name__ == "__main__":
    start("synthesize")
