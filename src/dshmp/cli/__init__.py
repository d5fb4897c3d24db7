"""The `dshmp` command. Heavy libraries are imported by the commands that need them, so that help answers at once."""

import gc
import logging
import sys
from pathlib import Path

from dshmp.cli import data, models, score, segment, train
from dshmp.cli.base import app, tell
from dshmp.common.environment import collect_rarely, keep_memory, share_cores
from dshmp.common.errors import UserError
from dshmp.common.signals import heeded

COMMANDS = (
    *(segment.segment, segment.batch, segment.demo, segment.serve),
    *(train.train, train.ablate, train.configs),
    *(score.evaluate, score.predict, score.submission, score.score),
    *(models.convert, models.export, models.info),
)
"""In the order in which help lists them."""
for command in COMMANDS:
    app.command()(command)
app.add_typer(data.synthetic, name="synthetic")
app.add_typer(data.data, name="data")


class _WarningLines(logging.Handler):
    """Warnings as single lines among the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        tell(f"{record.levelname.lower()}: {record.getMessage()}")


def main() -> None:
    """Run the command. A person's mistake is one line on stderr and exit code 2."""
    with heeded():
        run()


def run() -> None:
    keep_memory()
    share_cores()
    collect_rarely()
    log = logging.getLogger("dshmp")
    log.handlers, log.propagate = [_WarningLines()], False
    log.setLevel(logging.WARNING)
    try:
        app()
    except UserError as error:
        tell(str(error))
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that may not be written
        where = error.filename or Path.cwd()
        tell(f"{where}: {error.strerror or error}; see whether it may be read and written, and the disk has room")
        sys.exit(2)
    finally:
        gc.freeze()  # or Python looks through all objects of all libraries before it ends, for half a second
