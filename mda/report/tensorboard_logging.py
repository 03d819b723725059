"""One TensorBoard run per job, in the job's own folder."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mda.report.job_log import JobLog
from mda.schema import ConfigError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
"""In the folder of a job: its event files."""


class TensorboardLog(JobLog):
    """Writes scalars and figures as TensorBoard events; tables and artifacts are files already."""

    def __init__(self, writer: SummaryWriter):
        self.writer = writer

    @property
    def hint(self) -> str:
        return f"to look at it:  tensorboard --logdir {shlex.quote(self.writer.log_dir)}\n"

    def scalars(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if name != "step":
                self.writer.add_scalar(name, value, int(values["step"]))
        self.writer.flush()

    def figures(self, paths: Sequence[Path]) -> None:
        from matplotlib.image import imread

        for path in paths:
            colours = imread(path)[..., :3]
            self.writer.add_image(f"figures/{path.stem}", colours, dataformats="HWC")


@contextmanager
def tensorboard_log(folder: Path, settings: Mapping[str, Any]) -> Iterator[TensorboardLog]:
    """Yields the log of one job, whose event files are in `folder`/tensorboard.

    A killed job that is started again logs everything anew, so its earlier files are deleted. Every
    row is flushed at once. Raises ConfigError where the package tensorboard is missing.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "logger=tensorboard needs the package tensorboard; "
            "pip install 'mechanistic-data-attribution[tensorboard]' brings it"
        ) from error
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    with SummaryWriter(str(folder / FOLDER)) as writer:
        text = json.dumps(settings, indent=2, default=str)
        writer.add_text("settings", f"```json\n{text}\n```")
        yield TensorboardLog(writer)
