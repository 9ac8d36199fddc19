"""What the documents say of the code, where the code can be asked."""

from __future__ import annotations

import re
from pathlib import Path

from mlplatform.contract import FailureClass

REPOSITORY = Path(__file__).parents[2]


def test_every_failure_class_has_a_row_in_troubleshooting() -> None:
    text = (REPOSITORY / "docs/troubleshooting.md").read_text()
    assert sorted(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == sorted(FailureClass)
