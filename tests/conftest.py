"""What several test files share: one small synthetic data set on disk, and one thread for tensors this small."""

from pathlib import Path

import pytest
import torch

from dshmp.synthetic.make import make_synthetic

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic data set of a dozen clips; the second clip of a split is there backwards, too."""
    root = tmp_path_factory.mktemp("data") / "mini"
    make_synthetic(root, train=6, valid=3, test=2, version=1, workers=1)
    return root
