"""The programs: `mda <name>` and `python experiments/<name>.py` run the module of that name."""

from importlib import import_module


def start(name: str) -> None:
    """Runs the program `name` of the module of that name, as the command line says.

    Its module's `NEEDS` are the groups of settings that it reads, `preview` answers --dry-run.
    """
    from mda.config import main

    module = import_module(f"mda.programs.{name}")
    if name == "reproduce":
        module.start()
        return
    program, preview = getattr(module, name), getattr(module, "preview", None)
    main(program, module.NEEDS, preview, shared=name == "trace")
