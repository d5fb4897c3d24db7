"""Masks of objects from boxes, and from frame to frame: SAM 2.

transformers prepares SAM 2's pictures with torchvision, which this package does without; the same is done here.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dshmp.candidates.hub import load
from dshmp.video.source import Pixels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pictures that SAM 2 was trained on, 0 to 1
CORNERS = [2, 3]  # labels of the points that are a box's top left and bottom right


def model_frame(image: Pixels, side: int) -> Tensor:
    """A picture (H, W, 3) as SAM 2 sees it: (3, side, side) float32, normalised; its aspect ratio is not kept."""
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float()
    small = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)[0] / 255
    return (small - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def model_boxes(boxes: Tensor, size: tuple[int, int], side: int) -> Tensor:
    """Boxes (K, 4) in the pixels of a picture of this height and width -> in those of `model_frame`."""
    return boxes * side / torch.tensor([size[1], size[0]]).repeat(2)


def frame_mask(logits: Tensor, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Mask logits (1, 1, h, w) of `model_frame` -> the mask (H, W) of the picture."""
    mask: NDArray[np.bool_] = (F.interpolate(logits.float(), size, mode="bilinear")[0, 0] > 0).cpu().numpy()
    return mask


class Propagation:
    """Objects that are followed through a video, by number. Each has a session of SAM 2 of its own, so that it may
    begin and end in any frame; the picture is encoded once for all. A session keeps what SAM 2 looks back at: the
    masks' memory of a few frames, and pointers of a few more."""

    def __init__(self, folder: Path, device: torch.device, patience: int) -> None:
        from transformers import Sam2VideoModel

        self.model = load(Sam2VideoModel, folder, device)
        self.device = device
        self.patience = patience  # frames for which an object that is not seen is followed
        self.sessions: dict[int, Any] = {}
        self.seen: dict[int, int] = {}  # when last
        self.time, self.count, self.size = -1, 0, (0, 0)
        self.pixels = torch.empty(0)
        self.features = self._session().cache

    def move(self, image: Pixels) -> dict[int, NDArray[np.bool_]]:
        """The next frame: masks (H, W) of what is seen there of the objects so far."""
        self.time, self.size = self.time + 1, image.shape[:2]
        self.pixels = model_frame(image, self.model.image_size).to(self.device)
        masks = self._run(list(self.sessions))
        for number in [each for each, last in self.seen.items() if self.time - last > self.patience]:
            self.end(number)
        return masks

    def begin(self, boxes: Tensor) -> dict[int, NDArray[np.bool_]]:
        """New objects in the same frame, at boxes (K, 4) in its pixels: their masks, if not empty, in that order."""
        numbers = range(self.count, self.count + len(boxes))
        for number, box in zip(numbers, model_boxes(boxes, self.size, self.model.image_size), strict=True):
            self.sessions[number] = session = self._session()
            session.cache = self.features
            points = box.view(1, 1, 2, 2).float()
            labels = torch.tensor(CORNERS, dtype=torch.int32).view(1, 1, 2)
            inputs = {"point_coords": points, "point_labels": labels}
            session.add_point_inputs(session.obj_id_to_idx(0), self.time, inputs)
            session.obj_with_new_inputs = [0]
        self.count += len(boxes)
        masks = self._run(numbers)
        for number in set(numbers) - masks.keys():
            self.end(number)
        return masks

    def end(self, number: int) -> None:
        """Follow it no longer."""
        del self.sessions[number]
        self.seen.pop(number, None)

    @torch.inference_mode()
    def _run(self, numbers: Iterable[int]) -> dict[int, NDArray[np.bool_]]:
        masks = {}
        for number in numbers:
            session = self.sessions[number]
            found = self.model(session, frame=self.pixels, frame_idx=self.time)
            forget(session, self.time, self.model.config)
            session.processed_frames = {}
            if (mask := frame_mask(found.pred_masks, self.size)).any():
                masks[number], self.seen[number] = mask, self.time
        return masks

    def _session(self) -> Any:
        from transformers import Sam2VideoInferenceSession

        places = ("inference_device", "inference_state_device", "video_storage_device")
        return Sam2VideoInferenceSession(**dict.fromkeys(places, self.device), dtype=torch.float32)


def forget(session: Any, time: int, config: Any) -> None:
    """Keep of a session what frame `time` + 1 and later ones look back at; frames that began an object stay."""
    for tracked in session.frames_tracked_per_obj.values():
        tracked.clear()
    for outputs in session.output_dict_per_obj.values():
        later = outputs["non_cond_frame_outputs"]
        for t in [t for t in later if t < time + 2 - config.max_object_pointers_in_encoder]:
            del later[t]
        for kept in (*outputs["cond_frame_outputs"].values(), *later.values()):
            kept.pop("pred_masks", None)
            kept.pop("high_res_masks", None)
        for t in [t for t in later if t < time + 2 - config.num_maskmem]:
            later[t].pop("maskmem_features", None)
            later[t].pop("maskmem_pos_enc", None)
