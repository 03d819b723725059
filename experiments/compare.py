"""`mda compare` for those who clone: what the edits did, and more than random ones?"""

from mda.programs.compare import start

if __name__ == "__main__":
    start()
