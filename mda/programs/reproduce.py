"""Run a finished run again and compare every metric it logged, value by value.

    mda reproduce outputs/runs/run/<name>

Reads the run's configuration back through the schema, and stops if the configuration, an input's
hash or a package's version has changed. Then it repeats the program into a new folder under
--outputs with its own store: the run's last stage is computed again from inputs in the store under
--outputs (--from-scratch: all stages). The run may belong to another user: nothing is written into
it, nor where its configuration points. Exit code 0: all equal; 1: something differs; 2: not
reproducible.
"""

import argparse
import sys
from collections.abc import Iterator
from datetime import datetime
from importlib import import_module
from pathlib import Path

from mda.config import Saved, placed, read_saved, repeating
from mda.schema import ConfigError
from mda.schema.setting import printable

OWN = {"train": {"base", "curve"}, "trace": {"scores", "curvature"}, "run": {"arm", "capabilities"}}
"""Program -> kinds of artifacts that a reproduction computes again."""


def changes(saved: Saved) -> Iterator[str]:
    """Returns everything that has changed since the run, a sentence each."""
    from mda import pipeline, store
    from mda.stages.preview import fingerprints

    yield from saved.edited
    for package, now in store.versions().items():
        then = saved.versions.get(package)
        if then != now:
            yield f"{package} is {now} and was {then} in the run"
    stages = {"train": pipeline.train, "trace": pipeline.trace, "run": pipeline.arm}
    for kind, now in fingerprints(saved.config, stages[saved.program]).items():
        if kind in saved.used and saved.used[kind] != now:
            yield f"the hash of its {kind} is {now} and was {saved.used[kind]} in the run"


def note_on_code(saved: Saved) -> None:
    """Prints how the code differs from the run's, as results may differ without a changed hash."""
    from mda import store

    now, then = store.git_state(), saved.git
    if now != then or now["dirty"]:
        was, is_now = (
            f"{s.get('sha')}{' with changes' * bool(s.get('dirty'))}" for s in (then, now)
        )
        print(printable(f"note: the code was at {was} and is at {is_now}"), file=sys.stderr)


def reproduce(run: Path, outputs: Path, anyway: bool, from_scratch: bool) -> bool:
    """Repeats a run and prints the comparison. Returns True where every value is equal.

    Inputs are found in the store under `outputs`, and everything is written there, whatever the
    run's own configuration is.
    """
    from mda import store
    from mda.report.reproduction import agreement, print_agreement, read_tables

    saved = placed(read_saved(run), outputs)
    if saved.program not in OWN or not saved.used:
        raise ConfigError(f"{run} is invalid; expected a finished run of {', '.join(OWN)}")
    logged = read_tables(run)
    note_on_code(saved)
    found = list(changes(saved))
    for sentence in found:
        print(printable(f"changed: {sentence}"), file=sys.stderr)
    if found and not anyway:
        raise ConfigError(f"{run} has changed since the run; --anyway continues")
    name = f"{run.resolve().name}-{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    place = outputs / "runs" / "reproduce" / name
    if not place.resolve().is_relative_to(outputs.resolve()):
        raise ConfigError(f"--outputs {outputs} is invalid: {place.parent} leads out of it")
    (place / "store").mkdir(parents=True)
    for artifact in [] if from_scratch else store.Store(outputs / "store").artifacts():
        if artifact.kind not in OWN[saved.program]:  # a link each: what is built stays here
            link = place / "store" / artifact.kind / artifact.fingerprint
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(artifact.path.resolve(), target_is_directory=True)
    with repeating(saved, place / "run", place) as config:
        program = import_module(f"mda.programs.{saved.program}")
        getattr(program, saved.program)(config, place / "run")
    equal = print_agreement(agreement(logged, read_tables(place / "run")))
    print(place / "run")
    return equal


def start() -> None:
    """Runs the program from the command line."""
    parser = argparse.ArgumentParser(
        prog="mda reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument(
        "--outputs", type=Path, default=Path("outputs"), help="folder of store/ and runs/"
    )
    parser.add_argument("--anyway", action="store_true", help="go on in spite of what has changed")
    parser.add_argument("--from-scratch", action="store_true", help="compute the inputs too")
    args = parser.parse_args()
    try:
        equal = reproduce(args.run, args.outputs, args.anyway, args.from_scratch)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(0 if equal else 1)
