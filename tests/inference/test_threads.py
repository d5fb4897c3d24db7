"""One Segmenter, several threads or processes: the same answers as alone."""

import pickle
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from clips import picture, tiny_model
from dshmp.common.processes import worker_pool
from dshmp.inference.segmenter import Segmenter
from dshmp.model.tokenizer import TextTokenizer, train_tokenizer

TEXTS = ["the red star moving left", "the one that turns back", "a cat", "the blue disc that stops", "what grows"]


@pytest.fixture
def segmenter() -> Segmenter:
    return Segmenter(*tiny_model(4), device="cpu")


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    return [np.stack([picture(k * i, 50 + 4 * k, 70) for i in range(9)]) for k in range(1, 4)]


def at_once(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """What the tasks give, all begun at the same moment."""
    barrier = threading.Barrier(len(tasks))

    def run(task: Callable[[], Any]) -> Any:
        barrier.wait()
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        return list(pool.map(run, tasks))


def test_calls(segmenter: Segmenter, clips: list[np.ndarray]) -> None:
    asked = [(clip, text) for clip in clips for text in TEXTS]
    together = at_once([lambda pair=pair: segmenter(*pair) for pair in asked])  # type: ignore[misc]
    alone = Segmenter(*tiny_model(4), device="cpu")
    assert together == [alone(*pair) for pair in asked]
    assert torch.is_grad_enabled()


def test_an_encoded_video(segmenter: Segmenter, clips: list[np.ndarray]) -> None:
    expected = [segmenter(clips[0], text) for text in TEXTS]
    with segmenter.encode(clips[0]) as video:
        assert at_once([lambda text=text: video(text) for text in TEXTS]) == expected  # type: ignore[misc]


def test_streams(segmenter: Segmenter, clips: list[np.ndarray]) -> None:
    def stream(text: str) -> list[Any]:
        return list(segmenter.stream(iter(clips[0]), text, window=4))

    assert at_once([lambda text=text: stream(text) for text in TEXTS]) == [stream(text) for text in TEXTS]  # type: ignore[misc]


def test_candidates(clips: list[np.ndarray]) -> None:
    model = tiny.geometry_model()
    segmenter = Segmenter(model, TextTokenizer(model.config, train_tokenizer(TEXTS, 300)), device="cpu")

    def ask(text: str) -> Any:
        return segmenter(clips[0], text, fps=8, candidates="moving", threshold=0.0)

    assert at_once([lambda text=text: ask(text) for text in TEXTS[:3]]) == [ask(text) for text in TEXTS[:3]]  # type: ignore[misc]


def _answer(packed: bytes, clip: np.ndarray) -> Any:
    return pickle.loads(packed)(clip, TEXTS[0])


def test_a_pickled_one(segmenter: Segmenter, clips: list[np.ndarray]) -> None:
    expected = segmenter(clips[0], TEXTS[0])
    packed = pickle.dumps(segmenter)
    copied = pickle.loads(packed)
    assert copied(clips[0], TEXTS) == segmenter(clips[0], TEXTS)
    assert copied.tokenizer.identity() == segmenter.tokenizer.identity()
    with worker_pool(1) as pool:
        assert pool.submit(_answer, packed, clips[0]).result() == expected


@pytest.mark.slow
def test_the_default_model_pickled() -> None:
    segmenter = Segmenter.from_pretrained("default", "cpu")
    clip = np.stack([picture(3 * i, 60, 90) for i in range(6)])
    assert pickle.loads(pickle.dumps(segmenter))(clip, TEXTS[0], fps=8) == segmenter(clip, TEXTS[0], fps=8)


def test_saving_while_asking(segmenter: Segmenter, clips: list[np.ndarray], tmp_path: Path) -> None:
    expected = segmenter(clips[0], TEXTS[0])
    result, _ = at_once([lambda: segmenter(clips[0], TEXTS[0]), lambda: segmenter.save_pretrained(tmp_path / "model")])
    assert result == expected
    assert Segmenter.from_pretrained(tmp_path / "model", "cpu")(clips[0], TEXTS[0]) == expected
