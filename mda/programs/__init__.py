"""The programs: `mda <name>` and `python experiments/<name>.py` run the module of that name."""

from importlib import import_module


def start(name: str) -> None:
    """Runs the program `name` of the module of that name, as the command line says.

    `NEEDS` of the module are the groups of settings that it reads, its `preview` answers --dry-run.
    A module with a `start` of its own reads other words than settings.
    """
    module = import_module(f"mda.programs.{name}")
    if hasattr(module, "start"):
        module.start()
        return
    from mda.config import main

    program, preview = getattr(module, name), getattr(module, "preview", None)
    main(program, module.NEEDS, preview, shared=name == "trace")
