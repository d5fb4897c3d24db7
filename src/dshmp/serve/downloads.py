"""Files that the page gives away: of a view's answers as they are shown."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

from dshmp import formats
from dshmp.results.answer import EVIDENCE, RESULTS
from dshmp.results.folder import OVERLAY, slug
from dshmp.results.result import Result
from dshmp.results.show import draw_overlay
from dshmp.serve.session import View, shown, shown_colours
from dshmp.video.io import open_video

KINDS = (RESULTS, OVERLAY, *formats.KINDS)


def write(kinds: Sequence[str], view: View, folder: Path) -> list[Path]:
    """A file of each of these kinds, in `folder`: a format that is a folder, or has one per answer, as a zip file."""
    return [path for kind in kinds for path in _write(kind, view, folder)]


def _write(kind: str, view: View, folder: Path) -> list[Path]:
    if kind == RESULTS:
        return [write_results(view, shown(view), folder)]
    if kind == OVERLAY:
        return _write_overlays(view, folder)
    place = folder / "formats"
    files = formats.write([kind], shown(view), open_video(view.video), place)
    if files == [place / f"{kind}{formats.KINDS[kind].suffix}"]:
        return files
    path = folder / f"{kind}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in files:
            archive.write(file, file.relative_to(place))
            file.unlink()
    return [path]


def _write_overlays(view: View, folder: Path) -> list[Path]:
    """A video per sentence."""
    names = [f"{number:02d}-{slug(result.expression)}" for number, result in enumerate(view.results, 1)]
    paths = [folder / f"{name}-{OVERLAY}" for name in names]
    source = open_video(view.video)
    for number, (result, path) in enumerate(zip(shown(view), paths, strict=True)):
        draw_overlay(path, source, result, shown_colours(view, number))
    return paths


def write_results(view: View, results: Sequence[Result], folder: Path) -> Path:
    """result.json, as `dshmp.load_results` reads it."""
    size = {"height": results[0].height, "width": results[0].width}
    document = {"video": view.video.name, **size, "evidence": EVIDENCE, "results": [each.to_json() for each in results]}
    path = folder / RESULTS
    path.write_text(json.dumps(document), encoding="utf-8")
    return path
