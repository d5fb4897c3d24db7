"""The data sets by name: how each is opened, checked and written in miniature."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from dshmp.data import a2d, jhmdb, mevis, ref_davis, ref_youtube_vos, refcoco
from dshmp.data.base import Split
from dshmp.data.check import CheckReport
from dshmp.errors import UserError

Targets = Literal["many", "single"]
Layout = Literal["mevis", "youtube_vos", "davis", "coco"]


@dataclass(frozen=True)
class Dataset:
    """What the commands need to know of a data set."""

    title: str
    splits: tuple[str, ...]
    open: Callable[[Path, str], Split]
    """open(root, split)."""
    check: Callable[[Path, CheckReport], None]
    mini: Callable[[Path, int], None]
    """mini(folder, seed) writes a miniature data set; the folder is there and empty."""
    targets: Targets
    """Whether an expression may mean several objects or none, or always one."""
    layout: Layout
    """How predictions are laid out: PNGs per expression (two ways), palette PNGs per annotator, or COCO's results."""


def _entry(title: str, module: Any, opened: Callable[[Path, str], Split], targets: Targets, layout: Layout) -> Dataset:
    return Dataset(title, module.SPLITS, opened, module.check, module.write_mini, targets, layout)


DATASETS: dict[str, Dataset] = {
    "mevis": _entry("MeViS", mevis, mevis.MevisSplit, "many", "mevis"),
    "ref-youtube-vos": _entry(
        "Ref-YouTube-VOS", ref_youtube_vos, ref_youtube_vos.RefYoutubeVosSplit, "single", "youtube_vos"
    ),
    "ref-davis17": _entry("Ref-DAVIS17", ref_davis, ref_davis.RefDavisSplit, "single", "davis"),
    "a2d": _entry("A2D-Sentences", a2d, a2d.A2dSplit, "single", "coco"),
    "jhmdb": _entry("JHMDB-Sentences", jhmdb, jhmdb.JhmdbSplit, "single", "coco"),
    **{
        name: Dataset(
            title,
            tuple(refcoco.SENTENCES[name]),
            partial(refcoco.RefcocoSplit, dataset=name),
            partial(refcoco.check, dataset=name),
            partial(refcoco.write_mini, dataset=name),
            targets="single",
            layout="coco",
        )
        for name, title in zip(refcoco.DATASETS, ("RefCOCO", "RefCOCO+", "RefCOCOg"), strict=True)
    },
}
"""By the name that commands and recipes use."""


def dataset(name: str) -> Dataset:
    """The data set of this name, or UserError with the known ones."""
    if name not in DATASETS:
        raise UserError(f"{name!r} is no data set known here; choose from {', '.join(DATASETS)}")
    return DATASETS[name]


def open_split(name: str, root: Path, split: str) -> Split:
    """Open one split of a data set. Raises UserError."""
    return dataset(name).open(root, split)
