"""`dshmp evaluate`: a model's predictions on a split, and their scores by the data set's own protocol."""

from pathlib import Path

from dshmp.checkpoint import own_folder
from dshmp.data.registry import open_split
from dshmp.errors import UserError
from dshmp.evaluation import predict, score
from dshmp.evaluation.figures import Scores
from dshmp.evaluation.report import FILES
from dshmp.files import check_owned, output_folder
from dshmp.options import Options
from dshmp.predictor import Progress

PREDICTIONS = "predictions"


def run(
    name: str,
    root: Path,
    split_name: str,
    out: Path,
    options: Options,
    workers: int | None = None,
    compare: Path | None = None,
    progress: Progress | None = None,
    update_card: bool = False,
) -> Scores | None:
    """Predict into `out/predictions`, going on where an earlier run stopped, then score into `out`.

    With several processes (accelerate, torchrun) the first one scores and the others return None. Arguments are those
    of `predict.run` and `score.run`; with `update_card` the model's own card takes the figures.

    Raises UserError as these do, and where the split's masks are not public or the model has no card to fill, before
    anything is predicted.
    """
    card = own_folder(options.model) if update_card else None
    out = output_folder(out)
    check_owned(out, FILES)
    split = open_split(name, root, split_name)
    if not split.has_truth:
        raise UserError(f"{split.folder}: its masks are not public, so nothing can be scored; use dshmp predict")
    pred = out / PREDICTIONS
    if predict.run(name, root, split_name, pred, options, zipped=False, progress=progress) is None:
        return None
    return score.run(name, root, split_name, pred, out, workers, compare, card)
