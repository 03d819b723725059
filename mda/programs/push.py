"""Push a finished run to the Hugging Face hub as a data set with a card.

Scores, edits and curves become Parquet tables that `datasets.load_dataset` reads; pages and figures
go beside them. The data set is written into a folder, to be looked at; with --repo it is uploaded
too. A quickstart is pushed with its trace and its arms. The hub's token is that of `hf auth login`
or HF_TOKEN.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mda.config import read_saved
from mda.schema import ConfigError, Unavailable

if TYPE_CHECKING:
    from mda.report.dataset import Part
    from mda.types import Scores

FOLDER = "dataset"
"""In the folder of a run: its data set, unless another folder is named."""


def push(run: Path, folder: Path | None, repo: str | None, licence: str, private: bool) -> None:
    """Writes the data set of a run, uploads it with `repo`, and prints where it is."""
    from mda.report.dataset import parts_of, write_dataset

    if folder is None:
        shutil.rmtree(folder := run / FOLDER, ignore_errors=True)
    elif folder.exists():
        raise ConfigError(f"--folder {folder} is invalid; expected a folder that is not there yet")
    parts = parts_of(run)
    config = read_saved(run).config
    scores = scores_of(parts, Path(config.output_dir) / "store")
    files = write_dataset(parts, config, scores, folder, licence, repo or "OWNER/NAME")
    print(f"data set: {folder} ({len(files)} files; README.md is its card)")
    if repo is None:
        print(f"to upload it:  mda push {run} --repo OWNER/NAME")
    else:
        print(f"uploaded: {upload(folder, repo, private)}")


def scores_of(parts: Sequence[Part], root: Path) -> Scores | None:
    """Returns the scores of an arm whose trace is not among the parts, from the store.

    Returns None where no part has a unit's scores, or they are no longer in the store.
    """
    from mda.stages.attribution import load_scores

    own = parts[0].summary
    folder = root / "scores" / str(own["fingerprints"].get("scores"))
    if not folder.is_dir() or any("scores.csv" in part.files() for part in parts):
        return None
    scores = load_scores(folder)
    return scores if own["unit"] in scores.units else None


def upload(folder: Path, repo: str, private: bool) -> str:
    """Uploads a folder as a data set, which is made if there is none; returns its address.

    Raises ConfigError where the hub refuses, Unavailable where it may answer another time.
    """
    from huggingface_hub import HfApi

    from mda.data.errors import temporary

    api = HfApi()
    try:
        url = api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            repo_type="dataset",
            folder_path=folder,
            commit_message="Add a run of mechanistic data attribution",
        )
    except Exception as error:  # the client's transport, and with it its errors, has changed twice
        status = getattr(getattr(error, "response", None), "status_code", None)
        said = f"the hub answers {status}" if status else f"{type(error).__name__}"
        if temporary(error):
            raise Unavailable(f"--repo {repo}: {said}; start again later") from None
        raise ConfigError(
            f"--repo {repo}: {said}; expected owner/name that the token of `hf auth login` or "
            "HF_TOKEN may write to"
        ) from None
    return str(url)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mda push",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--repo", help="owner/name of the data set on the hub; without, no upload")
    parser.add_argument("--folder", type=Path, help="new folder to write, default RUN/dataset")
    parser.add_argument(
        "--license", default="unknown", help="the hub's word for it, such as cc-by-4.0"
    )
    parser.add_argument("--private", action="store_true", help="make the repository private")
    return parser


def start() -> None:
    """Runs the program from the command line."""
    args = _parser().parse_args()
    try:
        push(args.run, args.folder, args.repo, args.license, args.private)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
