"""`mda motifs` for those who clone: what the samples of highest influence have in common."""

from mda.programs.motifs import start

if __name__ == "__main__":
    start()
