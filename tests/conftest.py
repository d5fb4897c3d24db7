"""What several test files share: one small world on disk, and one thread for tensors this small."""

from pathlib import Path

import pytest
import torch

from dshmp.synthetic.make import make_world

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated world of a dozen clips; the second clip of a split has a twin, itself backwards."""
    root = tmp_path_factory.mktemp("data") / "mini"
    make_world(root, train=6, valid=3, test=2, workers=1)
    return root
