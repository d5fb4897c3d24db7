"""`dshmp evaluate`: a model's predictions on a split, and their scores by the data set's own protocol."""

import os
from pathlib import Path

from dshmp.checkpoint import own_folder
from dshmp.data.registry import open_split
from dshmp.errors import UserError
from dshmp.evaluation import predict
from dshmp.evaluation.figures import Scores
from dshmp.evaluation.report import FILES
from dshmp.evaluation.score import run as score
from dshmp.files import check_owned, output_folder
from dshmp.predictor import Precision, Progress, Targets

PREDICTIONS = "predictions"


def run(
    name: str,
    root: Path,
    split_name: str,
    out: Path,
    *,
    model: str = "default",
    device: str = "auto",
    precision: Precision = "auto",
    threshold: float | None = None,
    targets: Targets | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    compare: Path | None = None,
    progress: Progress | None = None,
    update_card: bool = False,
) -> Scores | None:
    """Predict into `out/predictions`, going on where an earlier run stopped, then score into `out`.

    With several processes (accelerate, torchrun) the first one scores and the others return None. Arguments are those
    of `predict.run` and `scoring.run.run`; with `update_card` the model's own card takes the figures.

    Raises:
        UserError: as these do, and where the split's masks are not public or the model has no card to fill, before
            anything is predicted.
    """
    card = own_folder(model) if update_card else None
    out = output_folder(out)
    check_owned(out, FILES)
    split = open_split(name, root, split_name)
    if not split.has_truth:
        raise UserError(f"{split.folder}: its masks are not public, so nothing can be scored; use dshmp predict")
    summary = predict.run(
        name,
        root,
        split_name,
        out / PREDICTIONS,
        model=model,
        device=device,
        precision=precision,
        threshold=threshold,
        targets=targets,
        overwrite=overwrite,
        zipped=False,
        progress=progress,
    )
    if summary is None:
        return None
    return score(name, root, split_name, out / PREDICTIONS, out, workers or os.cpu_count() or 1, compare, card)
