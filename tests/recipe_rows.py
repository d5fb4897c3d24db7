"""What each row of the paper's ablations changes of its recipe on MeViS."""

from typing import Any

from dshmp.config import flat, to_dict
from dshmp.training.recipe import Recipe

ROWS: dict[str, dict[str, Any]] = {
    "none": {"model.language.cues": "sentence", "model.motion.stages": 0, "negatives": 0},
    "ds": {"model.motion.stages": 0, "negatives": 0},
    "hmp": {"model.language.cues": "sentence", "negatives": 0},
    "cl": {"model.language.cues": "sentence", "model.motion.stages": 0},
    "ds_hmp": {"negatives": 0},
    "ds_cl": {"model.motion.stages": 0},
    "hmp_cl": {"model.language.cues": "sentence"},
    "full": {},
    "cues_words": {"model.language.cues": "words"},
    "cues_direct": {"model.language.cues": "direct"},
    "stages_1": {"model.motion.stages": 1},
    "stages_2": {"model.motion.stages": 2},
    "negatives_10": {"negatives": 10},
    "negatives_200": {"negatives": 200},
    "matching_none": {"model.motion.matching": "none"},
    "time_none": {},  # as in the paper
    "time_displacement": {"model.motion.displacement": True},
    "time_position": {"model.motion.position": True},
    "time": {"model.motion.position": True, "model.motion.displacement": True},
    "matching_tracks": {"model.motion.matching": "tracks", "model.motion.geometry": True},
}
OURS: dict[str, Any] = {
    "model.motion.matching": "tracks",
    "model.motion.object_position": False,
    "model.motion.position": True,
    "model.motion.geometry": True,
    "model.motion.camera": True,
    "model.motion.static": True,
    "model.motion.token_dropout": 0.15,
    "model.readout.masks": "trajectories",
}
ROWS |= {
    "ours": OURS,
    "no_static": {key: value for key, value in OURS.items() if key != "model.motion.static"},
    "no_camera": {key: value for key, value in OURS.items() if key != "model.motion.camera"},
    "soft": OURS | {"model.readout.pointing": "soft"},
    "tokens_kept": OURS | {"model.motion.token_dropout": 0.0},
    "tokens_hidden": OURS | {"model.motion.token_dropout": 1.0},
}
# of several files: what the last one says itself comes on top
TOGETHER = {
    f"{name}+ours": ROWS[name] | OURS for name in ("none", "ds", "hmp", "cl", "ds_hmp", "ds_cl", "hmp_cl", "full")
}
TOGETHER |= {
    f"full+ours+{name}": ROWS[name] for name in ("no_static", "no_camera", "soft", "tokens_kept", "tokens_hidden")
}


def changes(one: Recipe, other: Recipe) -> dict[str, Any]:
    """What differs in `other`."""
    before, after = (dict(flat(to_dict(recipe))) for recipe in (one, other))
    return {key: after[key] for key in after if not key.startswith("about") and before.get(key, ...) != after[key]}
