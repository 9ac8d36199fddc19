"""What a file of `mljobs.export` holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TRACE = """
import hashlib, sys, torch
sys.path.insert(0, sys.argv[1])
from small import Net
from mljobs import export
torch.manual_seed(1)
for model in (net := Net().eval(), export.int8(net)):
    content = export.torchscript(model, (torch.ones(3, 4),))
    assert torch.equal(export.load_torchscript(content)(torch.ones(2, 4)), model(torch.ones(2, 4)))
    print(hashlib.sha256(content).hexdigest())
"""
NET = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
    def forward(self, rows):
        return self.layer(rows)[:, 0]
"""


def test_the_same_model_gives_the_same_bytes_wherever_its_code_lies(tmp_path: Path) -> None:
    found = []
    for folder, lines_above in (("here", 0), ("another/place", 7)):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "small.py").write_text("\n" * lines_above + NET)
        command = [sys.executable, "-c", TRACE, str(tmp_path / folder)]
        found.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert len(set(found[0])) == 2, "fp32 and int8 are two files"
    assert found[0] == found[1]
