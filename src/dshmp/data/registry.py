"""The data sets by name: how each is opened, checked and written in miniature."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from dshmp.data import a2d, jhmdb, mevis, ref_davis, ref_youtube_vos, refcoco
from dshmp.data.base import Split
from dshmp.data.check import CheckReport
from dshmp.errors import UserError


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
    targets: Literal["many", "single"]
    """Whether an expression may mean several objects or none, or always one."""
    layout: Literal["mevis", "youtube_vos", "davis", "coco"]
    """How predictions are laid out: PNGs per expression (two ways), palette PNGs per annotator, or COCO's results."""


DATASETS: dict[str, Dataset] = {
    "mevis": Dataset(
        "MeViS", mevis.SPLITS, mevis.MevisSplit, mevis.check, mevis.write_mini, targets="many", layout="mevis"
    ),
    "ref-youtube-vos": Dataset(
        "Ref-YouTube-VOS",
        ref_youtube_vos.SPLITS,
        ref_youtube_vos.RefYoutubeVosSplit,
        ref_youtube_vos.check,
        ref_youtube_vos.write_mini,
        targets="single",
        layout="youtube_vos",
    ),
    "ref-davis17": Dataset(
        "Ref-DAVIS17",
        ref_davis.SPLITS,
        ref_davis.RefDavisSplit,
        ref_davis.check,
        ref_davis.write_mini,
        targets="single",
        layout="davis",
    ),
    "a2d": Dataset(
        "A2D-Sentences", a2d.SPLITS, a2d.A2dSplit, a2d.check, a2d.write_mini, targets="single", layout="coco"
    ),
    "jhmdb": Dataset(
        "JHMDB-Sentences",
        jhmdb.SPLITS,
        jhmdb.JhmdbSplit,
        jhmdb.check,
        jhmdb.write_mini,
        targets="single",
        layout="coco",
    ),
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
