"""`mda motifs` for those who clone: the motifs of the samples of highest influence."""

from mda.programs import start

if __name__ == "__main__":
    start("motifs")
