"""What the command asks of the system: freed memory is used again, threads that wait sleep; only there."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource
{prepare}
import torch
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(50_000_000)
before = faults()
for _ in range(5):
    torch.ones(50_000_000)
print(faults() - before)
"""
PAGES = 200_000_000 // os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
@pytest.mark.parametrize(
    ("prepare", "switch", "kept"),
    [
        ("", "1", False),
        ("import dshmp, dshmp.inference.segmenter", "1", False),
        ("from dshmp.common.environment import keep_memory; keep_memory()", "1", True),
        ("from dshmp.common.environment import keep_memory; keep_memory()", "0", False),
    ],
)
def test_pages_are_asked_for_once(prepare: str, switch: str, kept: bool) -> None:
    code = FAULTS.format(prepare=prepare)
    environment = {**os.environ, "DSHMP_KEEP_MEMORY": switch}
    environment.pop("THP_MEM_ALLOC_ENABLE", None)  # of a command that was run in this process
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert (int(run.stdout) < PAGES) == kept


@pytest.mark.parametrize(("given", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_that_wait_sleep_unless_told_otherwise(given: dict[str, str], policy: str) -> None:
    code = "import os, sys\nfrom dshmp.cli import main\nsys.argv = ['dshmp', '--version']\n"
    code += "try: main()\nfinally: print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"} | given
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.splitlines()[-1] == f"{policy} False"
