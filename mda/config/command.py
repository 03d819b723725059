"""A program's command line: checked first, then run once or as a sweep."""

from __future__ import annotations

import errno
import functools
import itertools
import math
import os
import re
import shutil
import signal
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mda.benchmark import cores
from mda.config import jobs
from mda.config.composer import (
    apart,
    composed,
    composer,
    register,
    search_path,
    typed,
    with_hydra,
)
from mda.config.files import conf_dir, groups, options
from mda.config.help_page import help_page
from mda.config.mistakes import explain, of_hydra, refuse_illegal
from mda.config.words import advice
from mda.schema import Config, ConfigError, Unavailable, refuse
from mda.terminal import at_terminal, replace_unknown

Program = Callable[[Config, Path], None]
Preview = Callable[[Sequence[Config], int], None]
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, a limit on files
EXHAUSTIVE = 16
"""A sweep of more jobs is checked one alternative at a time, not every combination: composing
one takes a quarter of a second, and Hydra does it again."""


def main(
    program: Program, needs: Sequence[str], preview: Preview | None = None, shared: bool = False
) -> None:
    """Runs `program(config, folder)` as the command line says; exit code 2 after a mistake.

    With --dry-run, `preview(configs, jobs side by side)` prints what would be built. `needs` are
    the groups that the program uses: `--help` shows these, and the rules between groups are checked
    among these. Processes of torchrun are an error unless the work is `shared` among them. The
    docstring of the program's module begins its help. Import heavy packages (torch, transformers)
    inside `program`, so that help and errors appear at once.
    """
    with at_terminal():
        _main(program, needs, preview, shared)


def _main(program: Program, needs: Sequence[str], preview: Preview | None, shared: bool) -> None:
    parser = get_args_parser()
    parser.error = lambda message: _refuse(ConfigError(f"{message}; see --help"))
    if preview is not None:
        parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_intermixed_args()
    flags = [word for word in sys.argv[1:] if word not in args.overrides]
    sys.argv[1:] = [*flags, *args.overrides]  # Hydra itself wants its flags first
    try:
        register()
    except ConfigError as error:
        _refuse(error)
    if args.help:
        about = sys.modules[program.__module__].__doc__ or ""
        file = f"python {Path(sys.argv[0]).name}"
        name = file if program.__module__ == "__main__" else f"mda {program.__name__}"
        all_options = {group: options(group) for group in groups()}
        print(help_page(name, about, needs, all_options, preview is not None))
        return
    n_jobs = 1
    try:
        if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1 and not shared:
            raise ConfigError(
                f"WORLD_SIZE={processes}: each process of torchrun would do all the work; "
                f"expected torchrun -m mda.cli trace, or training.devices={processes} without it"
            )
        if preview is not None and args.dry_run:
            checked = check(args, needs, every=True)
            return preview(checked.configs, min(checked.at_once, len(checked.configs)))
        if not (args.hydra_help or args.shell_completion or args.info):
            n_jobs = check(args, needs).jobs
    except ConfigError as error:
        _refuse(error)
    run = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    with _ended_by_signals(), tempfile.TemporaryDirectory() as folder:
        if int(os.environ.get("RANK", "0")) > 0:  # of torchrun's processes the first writes
            sys.argv.append(f"hydra.run.dir={folder}")
        try:
            run(_task(program, needs))()
        finally:
            jobs.print_sweep(n_jobs)


@dataclass(frozen=True)
class Checked:
    """The composed configurations, the number of jobs, and how many run at a time."""

    configs: list[Config]
    jobs: int = 1
    at_once: int = 1


def check(args: Namespace, needs: Sequence[str] | None, every: bool = False) -> Checked:
    """Composes and checks the jobs of a parsed command line.

    Raises ConfigError.

    In a long sweep each value is checked once, not each combination, unless `every` is True.
    """
    name = args.config_name or "config"
    job = args.overrides
    extra = search_path(args.config_dir)
    with composer(args.config_path):
        try:
            parser = OverridesParser.create(GlobalHydra.instance().config_loader())
            given = parser.parse_overrides(args.overrides)
            refuse_illegal(given)
            swept = [item for item in given if item.is_sweep_override()]
            if not (swept or args.multirun):
                node, cfg = with_hydra(name, args.overrides + extra)
                if node.mode != RunMode.MULTIRUN:
                    _fix_threads(cfg, 1)
                    return Checked([typed(cfg, needs)])
            else:  # presets and Hydra's own settings decide whether it is a sweep
                fixed = [item for item in given if item not in swept]
                shape = [item for item in fixed if "." not in item.key_or_group or of_hydra(item)]
                node, _ = with_hydra(name, [str(item.input_line) for item in shape] + extra)
                if not (args.multirun or node.mode == RunMode.MULTIRUN):
                    raise ConfigError(
                        f"{swept[0].input_line} names several values; expected one value, a list "
                        f"as [a,b], or a sweep over them with -m{advice(str(swept[0].input_line))}"
                    )
            _refuse_absent(node, every)
            params = node.sweeper.get("params") or {}
            given = parser.parse_overrides([f"{k}={v}" for k, v in params.items()]) + given
            at_once, configs = jobs.side_by_side(node), []
            for job in _jobs(given, every):
                cfg = composed(name, job + extra)
                _fix_threads(cfg, at_once)
                configs.append(typed(cfg, needs))
                _refuse_nested(configs[-1], needs, at_once)
            return Checked(configs, sum(1 for _ in _jobs(given, every=True)), at_once)
        except Exception as error:
            raise explain(error, job) from error


@contextmanager
def prepared(
    program: str, overrides: Sequence[str], folder: Path, needs: Sequence[str], at_once: int
) -> Iterator[Config]:
    """Returns the configuration of a job that a program runs itself, and writes its records."""
    extra, words = apart(overrides)
    with composer():
        cfg = composed("config", words + extra)
    with _running(cfg, program, overrides, folder, at_once):
        yield typed(cfg, needs)


def _task(program: Program, needs: Sequence[str]) -> Callable[[DictConfig], None]:
    launcher = os.getpid()

    @functools.wraps(program)  # Hydra names the job after the module of the wrapped function
    def task(cfg: DictConfig) -> None:
        replace_unknown()  # in a process of its own, too
        node = HydraConfig.get()
        folder = Path(node.runtime.output_dir)
        at_once = jobs.side_by_side(node) if node.mode == RunMode.MULTIRUN else 1
        if node.mode == RunMode.MULTIRUN and "n_jobs" in node.launcher:
            jobs.end_with(launcher)
        try:
            with (
                jobs.output_to(jobs.own_output(node, folder)),
                _running(cfg, node.job.name, jobs.words_of(node), folder, at_once),
                jobs.own_gpu(folder.parent, 1 if cfg.training.accelerator == "cpu" else at_once),
            ):
                program(typed(cfg, needs), folder)
        except ConfigError as error:  # from data files and checkpoints, which only now are read
            if node.mode == RunMode.RUN:
                _refuse(error)
            raise CompactHydraException(f"error: {error}") from None
        finally:
            if node.mode == RunMode.MULTIRUN:
                jobs.tell(folder)

    return task


@contextmanager
def _running(
    cfg: DictConfig, program: str, overrides: Sequence[str], folder: Path, at_once: int
) -> Iterator[None]:
    """Writes config.yaml into a job's folder before the block, and job.json around it."""
    _fix_threads(cfg, at_once)
    with _room(cfg.output_dir):
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
        plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
        with jobs.recorded(folder, program, overrides, plain):
            yield


@contextmanager
def _room(output_dir: str) -> Iterator[None]:
    """Turns a full disk, or a limit that is reached, into one sentence: files are written whole."""
    try:
        yield
    except Exception as error:
        # The writer of safetensors has an error of its own, with the number in its words.
        match = re.search(r"os error (\d+)", str(error))
        code = int(match[1]) if match else getattr(error, "errno", None)
        if code not in FULL:
            raise
        raise Unavailable(
            f"output_dir={output_dir}: no more can be written ({os.strerror(code)}); nothing that "
            "was finished is lost: make room, and the same command goes on from here"
        ) from error


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Ends with exit code 143 after SIGTERM and 130 after Ctrl-C, as shells expect.

    Context managers of the block are closed on the way out. Jobs in other processes are not waited
    for: they end when this one does.
    """

    def end(*_: object) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        _leave(130)
    except SystemExit as stop:
        if stop.code == 143:
            _leave(143)
        raise
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _leave(code: int) -> NoReturn:
    print("stopped; the same command goes on from here", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # sys.exit would wait for the processes of jobs side by side


def _fix_threads(cfg: DictConfig, at_once: int) -> None:
    """Sets `training.threads=null` to a number, because results depend on it."""
    if cfg.training.threads is None:
        cfg.training.threads = max(1, cores() // at_once)


def _refuse_absent(node: DictConfig, preview: bool) -> None:
    """Raises ConfigError for a Slurm launcher where there is no Slurm; previews need none."""
    slurm = str(node.launcher.get("_target_", "")).endswith("SlurmLauncher")
    if slurm and not preview and shutil.which("srun") is None:
        raise ConfigError(
            "hydra/launcher=slurm needs the command srun, which is not here; expected a login "
            "node of a Slurm cluster, or hydra/launcher=parallel"
        )


def _refuse_nested(config: Config, needs: Sequence[str] | None, at_once: int) -> None:
    """Raises ConfigError for arms on several devices in jobs side by side.

    Otherwise only the arm would fail, after the scores are computed.
    """
    trains_arms = needs is None or "capabilities" in needs  # what an arm ends with
    if at_once > 1 and config.training.devices > 1 and trains_arms:
        limit = f"1 with hydra.launcher.n_jobs={at_once}, or one job at a time"
        raise refuse("training.devices", config.training.devices, limit)


def _jobs(given: Sequence[Override], every: bool) -> Iterator[list[str]]:
    """Returns the overrides of each job; for a range its ends, for a long sweep each value once."""
    choices: dict[str, list[str]] = {}
    for item in given:
        key = item.get_key_element()
        if not item.is_sweep_override():
            choices[key] = [str(item.input_line)]
        elif item.is_discrete_sweep():
            values = [f"{key}={value}" for value in item.sweep_string_iterator()]
            ends = item.is_range_sweep() and not every
            choices[key] = [values[0], values[-1]] if ends else values
    if every or math.prod(len(values) for values in choices.values()) <= EXHAUSTIVE:
        yield from map(list, itertools.product(*choices.values()))
        return
    first = {key: values[0] for key, values in choices.items()}
    yield list(first.values())
    for key, values in choices.items():
        for value in values[1:]:
            yield list({**first, key: value}.values())


def _refuse(error: ConfigError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(error.exit_code)
