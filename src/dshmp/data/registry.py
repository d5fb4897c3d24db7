"""The data sets by name: how each is opened, checked and written in miniature."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from dshmp.common.errors import UserError
from dshmp.data import a2d, jhmdb, mevis, ref_davis, refcoco
from dshmp.data import ref_youtube_vos as youtube
from dshmp.data.base import Split
from dshmp.data.check import CheckReport

Targets = Literal["many", "single"]
Layout = Literal["mevis", "youtube_vos", "davis", "coco"]


@dataclass(frozen=True)
class Dataset:
    """What the commands need to know of a data set.

    `open(root, split)` gives a split; `mini(folder, seed)` writes a miniature data set into an empty folder. `targets`
    says whether an expression may mean several objects or none, or always one, and `layout` how predictions are laid
    out: PNGs per expression (two ways), palette PNGs per annotator, or COCO's results.
    """

    title: str
    splits: tuple[str, ...]
    open: Callable[[Path, str], Split]
    check: Callable[[Path, CheckReport], None]
    mini: Callable[[Path, int], None]
    targets: Targets
    layout: Layout


def _coco(name: str, title: str) -> Dataset:
    check, mini = partial(refcoco.check, dataset=name), partial(refcoco.write_mini, dataset=name)
    opened = partial(refcoco.RefcocoSplit, dataset=name)
    return Dataset(title, tuple(refcoco.SENTENCES[name]), opened, check, mini, "single", "coco")


def _own(title: str, module: Any, opened: Callable[[Path, str], Split], targets: Targets, layout: Layout) -> Dataset:
    return Dataset(title, module.SPLITS, opened, module.check, module.write_mini, targets, layout)


DATASETS = {
    "mevis": _own("MeViS", mevis, mevis.MevisSplit, "many", "mevis"),
    "ref-youtube-vos": _own("Ref-YouTube-VOS", youtube, youtube.RefYoutubeVosSplit, "single", "youtube_vos"),
    "ref-davis17": _own("Ref-DAVIS17", ref_davis, ref_davis.RefDavisSplit, "single", "davis"),
    "a2d": _own("A2D-Sentences", a2d, a2d.A2dSplit, "single", "coco"),
    "jhmdb": _own("JHMDB-Sentences", jhmdb, jhmdb.JhmdbSplit, "single", "coco"),
    "refcoco": _coco("refcoco", "RefCOCO"),
    "refcoco+": _coco("refcoco+", "RefCOCO+"),
    "refcocog": _coco("refcocog", "RefCOCOg"),
}


def dataset(name: str) -> Dataset:
    """The data set of this name, or UserError with the known ones."""
    if name not in DATASETS:
        raise UserError(f"{name!r} is no data set known here; choose from {', '.join(DATASETS)}")
    return DATASETS[name]


def open_split(name: str, root: Path, split: str) -> Split:
    """Open one split of a data set. Raises UserError."""
    return dataset(name).open(Path(root), split)
