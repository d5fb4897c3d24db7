"""The versions of the synthetic data set are made as they were, version 1 bit by bit: figures are told about them."""

import hashlib
import json

import pytest

from dshmp.synthetic.make import clip_seed, make_clip
from dshmp.synthetic.plan import Plan, plan_clip
from dshmp.synthetic.world import schedule

# SHA-256 of frames, masks and sentences, first 16 digits, of seeds 3 and 41 together.
KNOWN = {
    ("alike", "train"): "76335f436bcf1b9e",
    ("alike", "valid_u"): "76335f436bcf1b9e",
    ("alike", "test"): "4d8036cc786dea7b",
    ("pairs", "train"): "09fb37741dea6eae",
    ("pairs", "valid_u"): "09fb37741dea6eae",
    ("pairs", "test"): "19165e7d8b8e18cd",
    ("long", "train"): "11d59c8217b86534",
    ("long", "valid_u"): "11d59c8217b86534",
    ("long", "test"): "c1ab983170bdf279",
    ("relative", "train"): "a2d18d6c2572f1e7",
    ("relative", "valid_u"): "a2d18d6c2572f1e7",
    ("relative", "test"): "98496a9dc6538182",
    ("fleeting", "train"): "f8e60d45846fe015",
    ("fleeting", "valid_u"): "f8e60d45846fe015",
    ("fleeting", "test"): "fd85148d997b7b20",
    ("easy", "train"): "8a525db4df2c74c3",
    ("easy", "valid_u"): "8a525db4df2c74c3",
    ("easy", "test"): "f171a071f8ad8c6e",
    ("crowd", "train"): "2262c68db963b96b",
    ("crowd", "valid_u"): "2262c68db963b96b",
    ("crowd", "test"): "cbc5eb18b1564181",
    ("close", "train"): "4de2dab66a86e446",
    ("close", "valid_u"): "4de2dab66a86e446",
    ("close", "test"): "513fe8c3a091baed",
}


# Of what is said in the first 60 clips of the validation split of seed 0.
SAID = {2: "2989356b5476f128", 3: "f8b7952bcc8ff395"}


def digest(family: str, split: str) -> str:
    whole = hashlib.sha256()
    for seed in (3, 41):
        clip = make_clip(seed, family, split, version=1)
        for part in (clip.frames.tobytes(), clip.masks.tobytes(), said(clip)):
            whole.update(part)
    return whole.hexdigest()[:16]


def said(clip: Plan) -> bytes:
    return json.dumps([[each.text, each.meant, each.static, each.subsets] for each in clip.expressions]).encode()


@pytest.mark.parametrize(("family", "split"), list(KNOWN))
def test_version_1_is_as_it_was(family: str, split: str) -> None:
    assert digest(family, split) == KNOWN[family, split]


@pytest.mark.parametrize("version", list(SAID))
def test_later_versions_say_what_they_said(version: int) -> None:
    clips = enumerate(schedule(version, "valid_u", 60))
    plans = (plan_clip(clip_seed(0, "valid_u", index), name, "valid_u", own) for index, (own, name) in clips)
    assert hashlib.sha256(b"".join(map(said, plans))).hexdigest()[:16] == SAID[version]
