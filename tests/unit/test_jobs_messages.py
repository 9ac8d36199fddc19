"""What a newcomer is told of files that cannot be learned from: the cause, the file, the column, the row, what helps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mljobs import data
from mljobs.failure import JobFailure
from mljobs.features import Choice
from mljobs.tasks.tabular import TabularTask
from mlplatform import api
from mlplatform.api import Data

DRAWN = np.random.default_rng(1)
ROWS = [(int(DRAWN.integers(18, 80)), str(DRAWN.choice(list("ABC"))), int(DRAWN.integers(2))) for _ in range(120)]
PLAIN = "age,shop,y\n" + "".join(f"{age},{shop},{y}\n" for age, shop, y in ROWS)


def prepared(folder: Path, files: dict[str, str], asked: dict[str, Any]) -> tuple[data.Rows, Choice, list[str]]:
    """As far as the training goes before it learns; the classes are the last of it."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    wanted = api.decode(Data, {"uri": str(folder), "label": "y", **asked})
    rows, task = data.load(wanted), TabularTask({})
    try:
        targets = task.targets(rows.table, wanted)
        parts = data.split(targets.strata, wanted.split)
    except JobFailure as failure:
        raise failure.at(rows.place) from None
    return rows, task.choose(rows, targets, parts, wanted), list(targets.label.get("classes", ()))


@dataclass(frozen=True)
class Bad:
    """Files that are refused.

    Attributes:
        reason: What is wrong with them.
        files: By name.
        says: Words of the message.
        action: Words of what to do.
        asked: More of `spec.data`.
    """

    reason: str
    files: dict[str, str]
    says: list[str]
    action: str
    asked: dict[str, Any] = field(default_factory=dict)


BAD = [
    Bad("a total at the end", {"a.csv": PLAIN + "Total,,\n"},
        ["1 of 121 rows have no value in the label column 'y'", "first row 121 of", "a.csv (age 'Total')"], "a total"),
    Bad("a sum at the end of the second file", {"a.csv": PLAIN, "b.csv": PLAIN + "5000,,\n"},
        ["first row 121 of", "b.csv (age 5000)"], "Remove these rows"),
    Bad("a total with a label", {"a.csv": PLAIN + "Total,,61\n"},
        ["3 different whole numbers (0, 1, 61)", "'61' is in row 121 of", "a.csv alone"], "Remove that row if it is a total"),
    Bad("likewise, where two classes were asked for", {"a.csv": PLAIN + "Total,,61\n"},
        ["has 3 distinct value(s) (0, 1, 61)", "'61' is in row 121 of"], "Remove that row", {"target": "binary"}),
    Bad("a typo of a class", {"a.csv": PLAIN.replace(",0\n", ",no\n").replace(",1\n", ",yes\n") + "50,A,yse\n"},
        ["of the class 'yse', which has 1 in all", "the first in row 121 of", "a.csv"], "remove those that are there"),
    Bad("a total of one cell", {"a.csv": PLAIN + "Total\n"},
        ["a.csv ends with row 121, which has 1 value where the header has 3 columns", "'Total'"], "remove the row"),
    Bad("an upload that broke off", {"a.csv": PLAIN, "b.csv": PLAIN[:-4]},
        ["b.csv ends with row 120, which has 2 values"], "Write the file again"),
    Bad("and within quotes", {"a.csv": PLAIN, "b.csv": PLAIN + '33,"A'},
        ["b.csv ends with row 121, which has 2 values"], "Write the file again"),
    Bad("a comma too many", {"a.csv": PLAIN.replace("\n", "\n40,A,B,1\n", 1)},
        ["row 1 has 4 values where the header has 3 columns", "'40,A,B,1'"], "in double quotes"),
    Bad("words among a part's numbers", {f"{i:02}.csv": PLAIN.replace("\n", f"\n{'50 years' if i == 17 else 50},A,1\n", 1) for i in range(20)},
        ["the column 'age' is int64 in", "00.csv but string in", "17.csv, first '50 years' in its row 1"], "Correct the cells"),
    Bad("a folder's column in the file, too", {"shop=A/a.csv": PLAIN},
        ["the folder of", "shop=A/a.csv names the column 'shop', which the file has, too"], "Write the files without 'shop'"),
    Bad("an empty part", {"a.csv": PLAIN, "b.csv": ""}, ["b.csv is empty"], "delete it"),
    Bad("a label in another case", {"a.csv": PLAIN}, ["no column ' Y' (did you mean 'y'?)"], "Write 'y' in spec.data.label",
        {"label": " Y"}),
    Bad("a class in another case", {"a.csv": PLAIN.replace(",0\n", ",no\n").replace(",1\n", ",yes\n")},
        ["'Yes' is no value of 'y' (did you mean yes?)"], "to one of 'no', 'yes'", {"positiveLabel": "Yes"}),
    Bad("the label again", {"a.csv": "alive,age,y\n" + "".join(f"{['no', 'yes'][y]},{age},{y}\n" for age, _, y in ROWS)},
        ["the column 'alive' tells the label 'y': one to one, no is 0, yes is 1, in all 120 rows"], '{"alive": ignore}'),
]  # fmt: skip


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.reason)
def test_what_cannot_be_learned_from_is_named(tmp_path: Path, case: Bad) -> None:
    with pytest.raises(JobFailure) as caught:
        prepared(tmp_path, case.files, case.asked)
    for words in case.says:
        assert words in caught.value.failure.message, case.reason
    assert case.action in caught.value.failure.next_action, case.reason


@pytest.mark.parametrize(
    ("written", "named", "classes", "reason"),
    [
        ("01", "1.0", ["0", "1"], "a fraction for a whole number"),
        (["0.0", "1.0"], "1", ["0", "1"], "and the reverse"),
        ("01", "0.0", ["1", "0"], "the lower one"),
        (["False", "True"], "True", ["false", "true"], "as Python writes it"),
        (["1.0", "1.50"], "1.5", ["1", "1.5"], "with a zero more"),
    ],
)
def test_a_positive_label_is_read_as_a_cell_is(
    tmp_path: Path, written: list[str], named: str, classes: list[str], reason: str
) -> None:
    text = "age,y\n" + "".join(f"{age},{written[y]}\n" for age, _, y in ROWS)
    assert prepared(tmp_path, {"a.csv": text}, {"positiveLabel": named})[2] == classes, reason


def test_a_part_of_a_header_alone_is_told_and_goes_with_the_others(tmp_path: Path) -> None:
    rows, _, _ = prepared(tmp_path, {"a.csv": PLAIN, "b.csv": "age,shop,y\n"}, {})
    assert rows.total == len(ROWS)
    assert any(line.endswith("b.csv has no rows") for line in rows.remarks())


def test_folders_that_name_a_column_give_it(tmp_path: Path) -> None:
    files = {
        "year=2023/zone=a%20b/a.csv": PLAIN,
        "year=2024/zone=__HIVE_DEFAULT_PARTITION__/a.csv": PLAIN.replace(",A,", ",D,"),
    }
    rows, _, _ = prepared(tmp_path, files, {"split": {"maxRepeated": 1.0}})
    assert rows.table.column("year").to_pylist() == [2023.0] * len(ROWS) + [2024.0] * len(ROWS)
    assert rows.table.column("zone").to_pylist() == ["a b"] * len(ROWS) + [None] * len(ROWS)


def test_a_header_with_spaces_is_its_name(tmp_path: Path) -> None:
    rows, _, _ = prepared(tmp_path, {"a.csv": PLAIN.replace("age,shop,y", " age, shop ,y ")}, {})
    assert rows.table.column_names == ["age", "shop", "y"]
