"""The pictures of an ablation's page."""

from collections.abc import Sequence
from pathlib import Path

from dshmp.ablation.page import Picture
from dshmp.ablation.results import Results


def pictures(results: Results, tables: Sequence[str], out: Path) -> list[Picture]:
    """Draw what the finished runs allow into out/pictures."""
    return []
