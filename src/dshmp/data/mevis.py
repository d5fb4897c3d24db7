"""The on-disk layout of MeViS, which the generated world shares.

    <root>/<split>/JPEGImages/<video>/<frame>.jpg
    <root>/<split>/meta_expressions.json   {"videos": {video: {"frames": [...], "expressions": {id: {...}}}}}
    <root>/<split>/mask_dict.json          {annotation id: [COCO RLE or null, one per frame position]}

Keys that MeViS does not have (the world adds objects, subsets and candidates) are kept and never needed.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dshmp.data.dataset import Expression, Video, read_frame, read_json
from dshmp.errors import UserError


class MevisSplit:
    """One split of a data set in MeViS's layout.

    `videos` maps names to `Video`, `expressions` lists every `Expression`; frames and masks are read on demand.
    Raises UserError naming the file where something is missing or malformed.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.folder = Path(root) / split
        if not self.folder.is_dir():
            known = sorted(item.parent.name for item in Path(root).glob("*/meta_expressions.json"))
            hint = f"splits there: {', '.join(known)}" if known else "make one with `dshmp world make`"
            raise UserError(f"{self.folder}: no such data set split; {hint}")
        self.videos: dict[str, Video] = {}
        self.expressions: list[Expression] = []
        self.has_truth = False
        path = self.folder / "meta_expressions.json"
        name = ""
        try:
            for name, entry in read_json(path).get("videos", {}).items():
                self._add(name, entry)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: video {name!r} is not as MeViS writes it ({error!r}); fetch it again") from None
        if not self.expressions:
            raise UserError(f"{path}: holds no expression")

    def _add(self, name: str, entry: dict[str, Any]) -> None:
        objects = {int(key): value for key, value in entry.get("objects", {}).items()}
        self.videos[name] = Video(name, tuple(entry["frames"]), objects)
        for key, item in entry["expressions"].items():
            extra = {k: v for k, v in item.items() if k not in ("exp", "obj_id", "anno_id")}
            self.has_truth |= "anno_id" in item
            ids, annotations = tuple(item.get("obj_id", ())), tuple(item.get("anno_id", ()))
            if len(ids) != len(annotations):
                raise UserError(
                    f"{self.folder / 'meta_expressions.json'}: video {name!r}, expression {key!r} has {len(ids)} "
                    f"obj_id and {len(annotations)} anno_id, which belong together in pairs; fetch the file again"
                )
            self.expressions.append(
                Expression(name, key, item["exp"], objects=ids, annotations=annotations, extra=extra)
            )

    @cached_property
    def _masks(self) -> dict[str, list[dict[str, Any] | None]]:
        return read_json(self.folder / "mask_dict.json")

    def frames(self, video: str, positions: Sequence[int] | None = None) -> list[NDArray[np.uint8]]:
        """Frames (H, W, 3) uint8 RGB of a video at the given positions in its list; all by default."""
        names = self.videos[video].frames
        chosen = names if positions is None else [names[i] for i in positions]
        return [read_frame(self.folder / "JPEGImages" / video / f"{name}.jpg") for name in chosen]

    def masks(
        self, video: str, annotations: Sequence[int], positions: Sequence[int], size: tuple[int, int]
    ) -> NDArray[np.bool_]:
        """Masks (G, T, H, W) of the annotations at the frame positions; `size` is (H, W) of the frames."""
        from pycocotools import mask as coco

        out = np.zeros((len(annotations), len(positions), *size), dtype=bool)
        for g, annotation in enumerate(annotations):
            where = f"{self.folder / 'mask_dict.json'}: annotation {annotation}"
            track = self._masks.get(str(annotation))
            if track is None:
                raise UserError(f"{where} is missing")
            for t, position in enumerate(positions):
                if position >= len(track):
                    raise UserError(f"{where} ends before frame {position}")
                rle = track[position]
                if rle is not None:
                    if tuple(rle["size"]) != tuple(size):
                        raise UserError(
                            f"{where}, frame {position} has size {rle['size']}, its frames have {list(size)}"
                        )
                    out[g, t] = coco.decode(rle)
        return out
