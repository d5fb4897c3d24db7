"""Which state of the code this is."""

import subprocess
from pathlib import Path


def revision() -> str | None:
    """The commit, with `+` where files differ from it; None where this program is in no git repository of its own."""
    home = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(home), "--no-optional-locks", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed package may lie in another repository
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
