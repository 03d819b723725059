"""`mda wandb_report` for those who clone: the comparison as a W&B report."""

from mda.programs.wandb_report import start

if __name__ == "__main__":
    start()
