"""The documents: their text, the commands in it, and the code."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


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
    return "\n".join(lines) + "\n"
