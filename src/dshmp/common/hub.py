"""What a name means: something here, for which the network is never asked, or a repository on the Hugging Face hub."""

import os
import re
from pathlib import Path

_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)  # `name` or `owner/name`
_ENDINGS = (
    *(".json", ".safetensors", ".pth", ".pt", ".pkl", ".bin", ".ckpt", ".npz", ".h5", ".p", ".mat"),
    *(".yaml", ".yml", ".txt", ".csv", ".zip", ".tar", ".gz", ".mp4"),
)


def looks_local(source: str | Path) -> bool:
    """Whether it is here, can only be a path, ends as files do, or would lie in a folder that is here."""
    text = str(source)
    if os.path.lexists(text) or not _ID.fullmatch(text) or text.lower().endswith(_ENDINGS):
        return True
    owner, slash, _ = text.partition("/")
    return bool(slash) and os.path.lexists(owner)
