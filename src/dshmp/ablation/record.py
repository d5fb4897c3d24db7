"""The finished runs of an ablation in one small file, from which its page is written again without any training."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel

from dshmp.ablation.runs import Found, Score
from dshmp.common.errors import UserError
from dshmp.common.files import owned_file
from dshmp.data.base import read_shape

RECORD = "results.json"


class _Sentence(BaseModel):
    video: str
    id: str
    subsets: list[str]


class _Run(BaseModel):
    measure: str
    seconds: float
    machine: str
    scores: list[int]  # whole per cent
    right: str  # a letter for each sentence: 1 yes, 0 no, - not asked
    empty: str


class _Record(BaseModel):
    base: str = ""  # what the rows change, as the page tells it
    sentences: list[_Sentence] = []
    runs: dict[str, _Run] = {}  # by the names of their folders
    pictures: dict[str, str] = {}  # sections of the page, in Markdown, by the names of their files


def read_record(folder: Path, base: str) -> tuple[dict[str, Found], dict[str, str]]:
    """The runs of this base that are recorded in a folder, by name, and the page's sections with pictures, by the names
    of their files. Raises UserError where they are of another base."""
    path = folder / RECORD
    if not path.exists():
        return {}, {}
    record = read_shape(path, _Record)
    if record.base != base:
        raise UserError(f"{path}: records runs of {record.base}, not of {base}; name another folder with --out")
    found = {}
    for name, run in record.runs.items():
        if {len(run.scores), len(run.right), len(run.empty)} != {len(record.sentences)}:
            raise UserError(f"{path}: run {name} has not one score per sentence; write the record anew from its runs")
        flags = [[None if each == "-" else each == "1" for each in told] for told in (run.right, run.empty)]
        rows = zip(record.sentences, run.scores, *flags, strict=True)
        scores = tuple(Score(item.video, item.id, tuple(item.subsets), *row) for item, *row in rows)
        found[name] = Found(run.measure, run.seconds, run.machine, scores)
    return found, record.pictures


def write_record(folder: Path, base: str, found: Mapping[str, Found], pictures: Mapping[str, str]) -> None:
    """Of finished runs of a base, by the names of their folders. Scores are rounded to whole per cent, by which a mean
    over thousands of sentences moves by less than 0.02."""
    first = next(iter(found.values()))
    record = _Record(
        base=base,
        sentences=[_Sentence(video=each.video, id=each.id, subsets=list(each.subsets)) for each in first.expressions],
        runs={
            name: _Run(
                measure=own.measure,
                seconds=own.seconds,
                machine=own.machine,
                scores=[round(each.score) for each in own.expressions],
                right=_letters([each.right for each in own.expressions]),
                empty=_letters([each.empty for each in own.expressions]),
            )
            for name, own in found.items()
        },
        pictures=dict(pictures),
    )
    with owned_file(folder, RECORD) as part:
        part.write_text(record.model_dump_json(), encoding="utf-8")


def _letters(flags: Sequence[bool | None]) -> str:
    return "".join("-" if each is None else str(int(each)) for each in flags)
