"""`mda wandb_report` for those who clone: the comparison as a W&B report."""

from mda.programs import start

if __name__ == "__main__":
    start("wandb_report")
