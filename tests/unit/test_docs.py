"""What the documents say of the code, where the code can be asked."""

from __future__ import annotations

import re
from pathlib import Path

from mlplatform import contract
from mlplatform.contract import FailureClass
from mlplatform.main import FINALIZER

REPOSITORY = Path(__file__).parents[2]


def test_every_failure_class_has_a_row_in_troubleshooting() -> None:
    text = (REPOSITORY / "docs/troubleshooting.md").read_text()
    assert sorted(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == sorted(FailureClass)


def test_the_gitops_recipes_name_everything_that_others_write_on_a_model() -> None:
    text = (REPOSITORY / "docs/gitops.md").read_text()
    written = (contract.ANNOTATION_RETRAIN, contract.ANNOTATION_ROLLBACK, FINALIZER)
    for word in (*written, contract.MANAGER, contract.MANAGER_CLI):
        assert f"`{word}`" in text, word
