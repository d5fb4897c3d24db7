"""Objects that the sentences name, which SAM 3 finds in every frame and follows. Only where torchvision is installed.

Written against transformers' classes; nobody here has run the published weights, which their owner gives on request.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from dshmp.candidates.hub import find_folder, load, load_part
from dshmp.candidates.open_vocabulary import named, phrase_tracks
from dshmp.candidates.propagation import forget
from dshmp.common.errors import UserError
from dshmp.common.progress import Progress
from dshmp.common.rle import Rle, encode
from dshmp.formats.tracks import Tracks
from dshmp.video.source import VideoSource


@dataclass(frozen=True)
class Sam3:
    """The settings, and a `CandidateSource`: of a video the objects that its sentences name, as SAM 3 finds them.

    Raises UserError where no sentence names an object, torchvision is missing, or the model is not to be had.
    """

    model: str = "facebook/sam3"  # or a folder
    revision: str = "3c879f39826c281e95690f02c7821c4de09afae7"

    def __call__(self, source: VideoSource, phrases: Sequence[str], device: torch.device, progress: Progress) -> Tracks:
        phrases = named(phrases)
        if find_spec("torchvision") is None:
            raise UserError("candidates sam3 need torchvision, which is not installed; run: pip install torchvision")
        from transformers import Sam3VideoModel, Sam3VideoProcessor
        from transformers.models.sam3_video import modeling_sam3_video

        # else transformers fetches compiled code from the hub where the package `kernels` is installed
        modeling_sam3_video.cv_utils_kernel = False
        told = "3.4 GB, SAM License, given on request: ask on its page there, then run: hf auth login"
        folder = find_folder(self.model, self.revision, told)
        processor = load_part(Sam3VideoProcessor, folder)
        model = load(Sam3VideoModel, folder, device)
        session = processor.init_video_session(inference_device=device, dtype=torch.float32)
        processor.add_text_prompt(session, list(phrases))
        masks: dict[int, dict[int, Rle]] = defaultdict(dict)
        names: dict[int, str] = {}
        for t, frame in enumerate(source):
            inputs = processor(images=frame.image.copy(), device=device, return_tensors="pt")  # writable
            with torch.inference_mode():
                output = model(inference_session=session, frame=inputs["pixel_values"][0], frame_idx=t)
                found = processor.postprocess_outputs(session, output, original_sizes=inputs["original_sizes"])
            forget(session, t, model.tracker_model.config)
            session.processed_frames[t] = torch.empty(0)  # their number still counts
            for number, mask in zip(found["object_ids"].tolist(), found["masks"].cpu().numpy(), strict=True):
                masks[number][source.start + t] = encode(mask)
            for phrase, numbers in found["prompt_to_obj_ids"].items():
                names |= dict.fromkeys(numbers, phrase)
            progress("candidates", t + 1, source.count)
        return phrase_tracks(source, phrases, masks, names)
