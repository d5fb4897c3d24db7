"""Tracks made elsewhere, from files of other tools, arrays or detections.

    <file>.json    YouTube-VIS: videos, and annotations with one mask per frame (run lengths, polygons or null);
                   the same as a bare list, as results are exchanged; or COCO video: videos, images and one annotation
                   per image and object
    <folder>/<track>/<frame>.png    a folder for each object, called as the track is; masks that are not 0
    <folder>/<frame>.png            one PNG per frame, with an index per object: DAVIS (8 bits, 255 is void) or MOTS
                                    (16 bits, class * 1000 + number, 10000 is void)
    <file>.xml     CVAT for video 1.1: tracks of masks or polygons
    <file>.txt     MOTS: per line frame, track, class, height, width, compressed run lengths

PNGs are called as the video's frames are, else by their number in the video.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dshmp.common.errors import UserError
from dshmp.formats import coco, cvat, index_pngs, mots, youtube_vis
from dshmp.formats.tracks import Tracks, array_tracks, checked_tracks, detection_tracks
from dshmp.video.source import VideoSource

INSTEAD = (
    "give JSON (YouTube-VIS, COCO video), XML of CVAT for video, MOTS text, a folder of index PNGs, or one with a "
    "folder per object"
)
TracksInput = str | Path | Tracks | Any  # ... or masks (K, T, H, W), or supervision's Detections of every frame


def find_tracks(given: TracksInput, source: VideoSource) -> Tracks:
    """Tracks of this video, from what a caller may give. Raises TypeError, UserError."""
    size = source.height, source.width
    if isinstance(given, Tracks):
        return checked_tracks(given, source)
    if isinstance(given, str | Path):
        return read_tracks(Path(given), source)
    if hasattr(given, "shape") or hasattr(given, "__array__"):
        return array_tracks(given, size)
    if not isinstance(given, Iterable):
        raise TypeError(f"tracks must be a path, masks (K, T, H, W) or detections, not {type(given).__name__}")
    return detection_tracks(given, size)


def read_tracks(path: Path, source: VideoSource) -> Tracks:
    """The tracks of a file or folder that belong to this video. Raises UserError."""
    if path.is_dir():
        return index_pngs.read(path, source)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; {INSTEAD}")
    kind = path.suffix.lower()
    if kind == ".json":
        return document_tracks(coco.read_document(path), source, path)
    if kind == ".xml":
        return cvat.read(path, source)
    if kind == ".txt":
        return mots.read(path, source)
    raise UserError(f"{path}: is no kind of tracks that is read here; {INSTEAD}")


def document_tracks(document: coco.Document, source: VideoSource, path: Path) -> Tracks:
    """The tracks of this video in JSON that was read. Raises UserError."""
    return coco.read(document, source, path) if document.images else youtube_vis.read(document, source, path)
