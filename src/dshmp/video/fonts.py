"""Fonts for the letters of a sentence: Pillow's own where it has them, else one that is installed."""

import logging
import os
import re
import unicodedata
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import ImageFont

log = logging.getLogger("dshmp")

FOLDERS = (
    *("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts"),
    *("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts", r"C:\Windows\Fonts"),
)
SPECIAL = re.compile("bold|black|heavy|light|thin|italic|oblique|mono|serif|condensed|narrow", re.IGNORECASE)
UNKNOWN = "\U0010ffff"  # no font has it, so it is drawn as the font draws what it does not have
PROBE = 33  # pixels at which letters are compared; fonts of pictures do not have this size, so they are passed over


@lru_cache
def font_for(text: str) -> tuple[Path | None, str]:
    """The first font with all letters of the text, None for Pillow's own; where there is none, that with most of them,
    and the letters that it lacks. A warning tells of those."""
    signs = set(re.sub(r"[\s\ufe00-\ufe0f]", "", text))  # without spaces and what only varies the letter before
    letters = "".join(sorted(c for c in signs if unicodedata.category(c) != "Cf"))
    best, least = None, _lacking(None, letters)
    for path in _installed() if least else ():
        if len(lacking := _lacking(path, letters)) < len(least):
            best, least = path, lacking
        if not least:
            break
    if least:
        log.warning("no installed font has %r; the overlay leaves it out; install one, for instance Noto Sans", least)
    return best, least


@lru_cache
def load_font(size: int, path: Path | None = None) -> Any:
    """A font of Pillow, of `size` pixels; its own, which every machine draws the same, where no path is given."""
    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size)


@lru_cache
def _installed() -> list[Path]:
    """Files of fonts: DejaVu Sans of matplotlib, then the system's, plain ones first."""
    library = find_spec("matplotlib")  # not imported
    own = [Path(library.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"] if library and library.origin else []
    files = (file for folder in FOLDERS for file in Path(os.path.expanduser(folder)).rglob("*.[tToO][tT][cCfF]"))
    fonts = (file for file in files if "LastResort" not in file.name)  # it has a box for every letter
    return own + sorted(fonts, key=lambda file: (SPECIAL.search(file.stem) is not None, file.name))


def _lacking(path: Path | None, letters: str) -> str:
    """Those of the letters that the font does not have; all of them where it cannot be read."""
    try:
        masks = [load_font(PROBE, path).getmask(c) for c in UNKNOWN + letters]
    except (OSError, ValueError):
        return letters
    unknown, *drawn = (bytes(mask) if mask.getbbox() else b"" for mask in masks)
    return "".join(c for c, mask in zip(letters, drawn, strict=True) if mask in (unknown, b""))
