"""The programs: `mda <name>` and `python experiments/<name>.py` run the module of that name."""
