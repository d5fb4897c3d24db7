"""What an evaluation found, into the card of the model that it was about."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dshmp.card import with_scores
from dshmp.checkpoint import CONFIG, load_card, load_model, own_folder, save_card
from dshmp.data.registry import dataset
from dshmp.errors import UserError
from dshmp.evaluation.figures import Scores, by_subset
from dshmp.evaluation.predict import fingerprint

log = logging.getLogger(__name__)


def check(source: Path, pred: Path, facts: Mapping[str, Any]) -> Path:
    """The folder whose card may be filled with the scores of predictions; `facts` is what their predict.json says.

    Raises UserError where it is none (`own_folder`), or the predictions are not known to be that model's.
    """
    folder = own_folder(source)
    if facts.get("weights") != fingerprint(load_model(folder)[0]):
        raise UserError(
            f"{pred}: its predict.json does not say that the predictions are of {folder}; name the folder that "
            "dshmp predict wrote with this model"
        )
    return folder


def fill(folder: Path, scores: Scores, name: str, root: Path, split_name: str, facts: Mapping[str, Any]) -> None:
    """Figures over all expressions and over each named subset into the card, in config.json and README.md.

    Where predictions are missing or damaged the card stays as it is, with a warning: the figures are not the model's.
    """
    if scores.problems:
        log.warning("%s: its card stays as it is, since predictions are missing or damaged", folder)
        return
    title = f"{name} ({root.resolve().name}), {split_name}"
    if facts.get("targets") == "single" and dataset(name).targets == "many":
        title += ", the best object only"
    found = {f"all ({len(scores.rows)})": scores.figures}
    found |= {f"{key} ({values.pop('expressions')})": values for key, values in by_subset(scores.rows).items()}
    card = load_card(folder / CONFIG)
    for subset, figures in found.items():
        rounded = {metric: round(value, 4) for metric, value in figures.items()}
        card = with_scores(card, f"{title}, {subset}", rounded)
    save_card(folder, card)
