"""`dshmp data import`: what annotators export, and sentences, as a data set in MeViS' layout (`dshmp.data.mevis`)."""

import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import ExifTags

from dshmp.common.errors import UserError
from dshmp.common.files import new_folder
from dshmp.common.lists import Row, read_rows
from dshmp.common.options import Annotations
from dshmp.common.progress import Progress
from dshmp.data.base import checked_name
from dshmp.data.images import save_jpeg
from dshmp.formats.answers import frame_names
from dshmp.formats.coco import Document, read_document
from dshmp.formats.reading import document_tracks, read_tracks
from dshmp.formats.tracks import Tracks
from dshmp.video.images import open_image
from dshmp.video.io import open_video
from dshmp.video.source import VideoSource

SUFFIXES = {"coco": ".json", "ytvis": ".json", "cvat": ".xml", "mots": ".txt", "davis": ""}  # davis: a folder
SPLIT = "train"
Read = Callable[[VideoSource], tuple[Tracks, Path]]  # the tracks of a video, and the file that they are from


def import_annotations(kind: Annotations, file: Path, sentences: Path, out: Path, progress: Progress) -> None:
    """Write the folder `out`, wholly or not at all.

    `sentences` lists rows of video, expression, objects (names of tracks, separated by spaces; none: nothing in the
    video is meant) and, if wanted, split ("train" without). Paths of videos are relative to it. `file` has the
    annotations of the only video, or of all as COCO and YouTube-VIS can; or it is a folder with a file, `<video>` and
    the format's suffix, for each, or with a folder `<video>` of PNGs. Frames are written as JPEG; such ones are copied.

    Raises UserError where `out` is there and not an empty folder, and for what cannot be read or does not fit together.
    """
    jobs: dict[tuple[str, Path], list[Row]] = defaultdict(list)
    for row in read_rows(sentences):
        if not isinstance(row.columns.get("objects"), str):
            raise UserError(f"{row.where}: has no objects; add a column of their tracks' names, which may be empty")
        jobs[_name(row.columns.get("split") or SPLIT, row), row.place].append(row)
    read = _reader(kind, file, len({place for _, place in jobs}))
    splits: dict[str, dict[str, Any]] = defaultdict(dict)
    with new_folder(out) as work:
        for done, ((split, _), rows) in enumerate(jobs.items()):
            progress("videos", done, len(jobs))
            source = open_video(rows[0].video)
            name = _name(source.name, rows[0])
            if name in splits[split]:
                raise UserError(f"{rows[0].where}: another video of {split} is called {name}, too; rename one")
            tracks, annotations = read(source)
            meant = [(row.expression, _meant(row, tracks, annotations)) for row in rows]
            frames = _save_frames(source, work / split / "JPEGImages" / name)
            masks = _masks(tracks, len(frames), annotations)
            first = sum(len(each["objects"]) for each in splits[split].values())
            splits[split][name] = {
                "frames": frames,
                "objects": {k: {"anno_id": first + k} for k in range(len(masks))},
                "expressions": {
                    str(key): {"exp": text, "obj_id": ids, "anno_id": [first + k for k in ids]}
                    for key, (text, ids) in enumerate(meant)
                },
            }
            with open(work / split / "mask_dict.json", "a") as written:  # one video after the other, as they are many
                for k, each in enumerate(masks, first):
                    written.write(f'{"," if k else "{"}\n"{k}": {json.dumps(each)}')
        for split, videos in splits.items():
            with open(work / split / "mask_dict.json", "a") as written:
                written.write("\n}\n")
            (work / split / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
        progress("videos", len(jobs), len(jobs))


def _name(text: str, row: Row) -> str:
    try:
        return checked_name(text)
    except ValueError as error:
        raise UserError(f"{row.where}: {error}; rename it") from None


def _reader(kind: Annotations, file: Path, count: int) -> Read:
    """What reads the tracks of one of `count` videos. Raises UserError."""
    suffix, is_json = SUFFIXES[kind], kind in ("coco", "ytvis")
    document: Document | None = None
    if is_json and file.is_file():
        document = read_document(file)
        if count > 1 and len(document.videos) < 2:
            raise UserError(f"{file}: has the tracks of one video, the list names {count}; give a folder of files")

    def read(source: VideoSource) -> tuple[Tracks, Path]:
        if document is not None:
            return document_tracks(document, source, file), file
        own = file / f"{source.name}{suffix}"
        path = own if count > 1 or own.exists() else file
        if not (path.is_file() and path.suffix.lower() == suffix if suffix else path.is_dir()):
            wanted = f"a file {suffix}" if suffix else "a folder of PNGs"
            raise UserError(f"{path}: is missing, or not {wanted}; of several videos give the folder that holds theirs")
        return read_tracks(path, source), path

    return read


def _meant(row: Row, tracks: Tracks, path: Path) -> list[int]:
    """The places of the tracks that a row names. Raises UserError."""
    known = {track.name: k for k, track in enumerate(tracks.items)}
    names = row.columns["objects"].split()
    if missing := [name for name in names if name not in known]:
        raise UserError(f"{row.where}: {path} has no track {missing[0]!r}; it has {', '.join(known)}")
    return list(dict.fromkeys(known[name] for name in names))


def _masks(tracks: Tracks, count: int, path: Path) -> list[list[Any]]:
    """Per track a mask or None for each of `count` frames. Raises UserError where there are more."""
    last = max(max(track.masks) for track in tracks.items)
    if last >= count or tracks.length not in (None, count):
        told = f"are of {tracks.length} frames" if tracks.length else f"have a mask in frame {last}"
        raise UserError(f"{path}: the tracks {told}, the video has {count} frames; give those of this video")
    return [[track.masks.get(t) for t in range(count)] for track in tracks.items]


def _save_frames(source: VideoSource, folder: Path) -> list[str]:
    """Write a video's frames as JPEG; upright JPEGs of a folder are copied. Returns their names."""
    folder.mkdir(parents=True)
    names = frame_names(source)
    there = {file.stem: file for file in source.path.iterdir()} if names and source.path is not None else {}
    written = []
    for t, frame in enumerate(source):
        name = names[t] if names else f"{t:05d}"
        if name in there and _is_upright_jpeg(there[name]):
            shutil.copyfile(there[name], folder / f"{name}.jpg")
        else:
            save_jpeg(folder / f"{name}.jpg", frame.image)
        written.append(name)
    return written


def _is_upright_jpeg(path: Path) -> bool:
    with open_image(path) as image:
        return image.format == "JPEG" and image.getexif().get(ExifTags.Base.Orientation, 1) == 1
