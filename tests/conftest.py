"""What several test files share: a small synthetic data set and a small model on disk, one thread for small tensors."""

from pathlib import Path

import pytest
import torch

from clips import tiny_model
from dshmp.checkpoint import save_model
from dshmp.synthetic.make import make_synthetic

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic data set of a dozen clips; the second clip of a split is there backwards, too."""
    root = tmp_path_factory.mktemp("data") / "mini"
    make_synthetic(root, train=6, valid=3, test=2, version=1, workers=1)
    return root


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of an untrained model."""
    folder = tmp_path_factory.mktemp("model")
    save_model(*tiny_model(), folder)
    return str(folder)
