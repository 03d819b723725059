"""Run a finished run again and compare every metric it logged, value by value.

    python experiments/reproduce.py outputs/runs/run/<name>

Reads the run's configuration back through the schema, refuses where it, an input's hash or a
package's version is no longer what the run had, then repeats the program into a new folder with a
store of its own: the run's last stage is computed again out of inputs that the store still has
(--from-scratch: all of them again). Exit code 0: all equal; 1: something differs; 2: refused.
"""

import argparse
import sys
from collections.abc import Iterator
from datetime import datetime
from importlib import import_module
from pathlib import Path

from mda.config import Saved, read_saved, repeating
from mda.schema import ConfigError

OWN = {"train": {"base"}, "trace": {"scores", "curvature"}, "run": {"arm"}}
"""Program -> kinds of artifacts that a reproduction computes again."""


def changes(saved: Saved) -> Iterator[str]:
    """Everything that is not as it was in the run, a sentence each."""
    from mda import pipeline, store
    from mda.stages.preview import fingerprints

    yield from saved.edited
    for package, now in store.versions().items():
        then = saved.versions.get(package)
        if then != now:
            yield f"{package} is {now} and was {then} in the run"
    stages = {"train": pipeline.train, "trace": pipeline.trace, "run": pipeline.arm}
    used = store.read_json(saved.folder / "summary.json")["fingerprints"]
    for kind, now in fingerprints(saved.config, stages[saved.program]).items():
        if kind in used and used[kind] != now:
            yield f"the hash of its {kind} is {now} and was {used[kind]} in the run"


def note_on_code(saved: Saved) -> None:
    """Say where the code differs from the run's: results may, and no hash can tell."""
    from mda import store

    now, then = store.git_state(), saved.git
    if now != then or now["dirty"]:
        was, is_now = (f"{s['sha']}{' with changes' * bool(s['dirty'])}" for s in (then, now))
        print(f"note: the code was at {was} and is at {is_now}", file=sys.stderr)


def reproduce(run: Path, anyway: bool, from_scratch: bool) -> bool:
    """Repeat a run and print the comparison; True where every value is equal."""
    saved = read_saved(run)
    if saved.program not in OWN or not (run / "summary.json").exists():
        raise ConfigError(f"{run} is refused; accepted: a finished run of {', '.join(OWN)}")
    note_on_code(saved)
    found = list(changes(saved))
    for sentence in found:
        print(f"changed: {sentence}", file=sys.stderr)
    if found and not anyway:
        raise ConfigError(f"{run} is no longer what was run; to go on as things stand: --anyway")
    outputs = Path(saved.config.output_dir)
    place = outputs / "runs" / "reproduce" / f"{run.name}-{datetime.now():%Y-%m-%d_%H-%M-%S}"
    (place / "store").mkdir(parents=True)
    for kind in [] if from_scratch else sorted((outputs / "store").glob("*/")):
        if kind.name not in OWN[saved.program]:
            (place / "store" / kind.name).symlink_to(kind.resolve(), target_is_directory=True)
    with repeating(saved, place / "run", place) as config:
        getattr(import_module(saved.program), saved.program)(config, place / "run")

    from mda.report.reproduction import agreement, print_agreement

    equal = print_agreement(agreement(run, place / "run"))
    print(place / "run")
    return equal


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--anyway", action="store_true", help="go on in spite of what has changed")
    parser.add_argument("--from-scratch", action="store_true", help="compute the inputs too")
    args = parser.parse_args()
    try:
        equal = reproduce(args.run, args.anyway, args.from_scratch)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(0 if equal else 1)


if __name__ == "__main__":
    main()
