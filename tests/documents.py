"""The documents: their text, the commands in it, and the code."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

OLD_NAMES = [
    ("dshmp synthetic make", "dshmp world make"),
    ("synthetic/v1", "worlds/v1"),
    (r"synthetic/(perception|tracks|language|motion|longer|blind|whole|ablation|overfit)\b", r"world/\1"),
    (r"dshmp\.data\.base", "dshmp.data.dataset"),
    (r"dshmp\.data\.registry", "dshmp.data.catalogue"),
    (r"dshmp\.model\.tokenizer", "dshmp.language.encoder"),
]
"""What the documents say -> what the package says until its folders have the names of the documents."""
RENAMED = importlib.util.find_spec("dshmp.synthetic") is not None


def now(text: str) -> str:
    """The text in the names of today's package."""
    if not RENAMED:
        for new, old in OLD_NAMES:
            text = re.sub(new, old, text)
    return text


def commands(text: str) -> list[str]:
    """The `dshmp` commands of a page, of its blocks and within its lines."""
    return re.findall(r"^dshmp [^\n]*", text, re.MULTILINE) + re.findall(r"`(dshmp \w+ [^`]+)`", text)


def code(path: Path) -> str:
    """All Python of a page, as one program with the page's line numbers."""
    lines, inside = [], False
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = line == "```python"
            line = ""
        lines.append(line if inside else "")
    return now("\n".join(lines) + "\n")
