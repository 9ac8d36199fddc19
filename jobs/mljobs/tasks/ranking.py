"""The built-in task `ranking`: what to show a user first.

Loaded by `tasks.load_task`. A row is a user and an item with what is known of both, and its labels are what the user did with
it. Cells are read as of any table (`tabular.py`, `tabular_model.py`); what is new is the model and what it is judged by:
the order of a user's rows.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

from mljobs import data, parting
from mljobs.data import Parts, Rows
from mljobs.failure import JobFailure, did_you_mean, row_words
from mljobs.features import Choice
from mljobs.tasks import Objective, Targets, tabular, targets
from mljobs.tasks.constant import CHANCE
from mljobs.tasks.tabular import TabularTask
from mljobs.tasks.tabular_model import Block, CategoricalEncoder, NumericEncoder, answered
from mljobs.tasks.targets import CLIP, MultiLabel
from mlplatform.api import Data, Fairness
from mlplatform.contract import IN_ANSWERS, RANKING, RANKING_METRICS, FailureClass

SHOWN_FIRST: Final = 10
"""Places of a list that count."""
SPREAD: Final = 0.1
"""Of the first values of embeddings: their products are to be small beside what the rest of a row says."""
BOTTOM: Final = 4
"""Width of the layer between numbers and their vector, in vectors."""
FIELD: Final = "spec.training.hyperparameters"

Codes = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Hyperparameters(tabular.Hyperparameters):
    """What `spec.training.hyperparameters` may hold, beside what it may of `tabular`.

    Attributes:
        user: The column whose rows are one list.
        ids: Further columns that name something, an item or its author, though they hold numbers.
        worth: By label how much it counts in the score and in what a list is judged by; 1 where nothing is said.
    """

    user: str = ""
    ids: tuple[str, ...] = ()
    worth: Mapping[str, float] = field(default_factory=dict)
    embedding: int = 16
    maxCategories: int = 100_000  # noqa: N815  the name in the YAML

    @property
    def checks(self) -> dict[str, bool]:
        """By name, whether a value makes sense."""
        worth = self.worth.values() if isinstance(self.worth, Mapping) else [-1]
        return {
            **super(
                Hyperparameters, self
            ).checks,  # with slots the class is made anew, and a bare super() has the old one
            "user": isinstance(self.user, str),
            "ids": isinstance(self.ids, tuple) and all(isinstance(name, str) for name in self.ids),
            "worth": all(type(value) in {int, float} and value >= 0 for value in worth),
        }


class RankingModel(nn.Module):
    """DLRM (Naumov et al. 2019, arXiv:1906.00091): a vector for each category and one for all numbers, their products, a top.

    Unlike there the vectors themselves go into the top, too, not the numbers' alone.

    Args:
        config: ``features``, ``label`` and ``model``, as of a `tabular_model.TabularModel`.
    """

    pairs: Tensor

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        model, features = config["model"], config["features"]
        self.width: int = model["embedding"]
        categorical = [feature for feature in features if feature["kind"] == "categorical"]
        self.categorical = CategoricalEncoder(categorical, self.width)
        with torch.no_grad():
            self.categorical.table.weight.mul_(SPREAD)
        self.numeric = NumericEncoder([feature for feature in features if feature["kind"] == "numeric"])
        wide, size = BOTTOM * self.width, self.numeric.size
        self.bottom = nn.Sequential(Block(size, wide, model["dropout"]), nn.Linear(wide, self.width)) if size else None
        self.vectors = len(categorical) + bool(size)
        first, second = torch.triu_indices(self.vectors, self.vectors, 1)
        self.register_buffer("pairs", first * self.vectors + second, persistent=False)
        widths = [self.vectors * self.width + len(self.pairs), *model["hidden"]]
        self.blocks = nn.ModuleList(
            Block(inputs, outputs, model["dropout"]) for inputs, outputs in itertools.pairwise(widths)
        )
        self.head = nn.Linear(widths[-1], len(config["label"]["labels"]))

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """Logits ``(n, labels)`` of what `tabular_model.TabularModel` takes."""
        x = self.categorical(categorical)
        if self.bottom is not None:
            x = torch.cat([x, self.bottom(self.numeric(numeric))], dim=1)
        vectors = x.reshape(-1, self.vectors, self.width)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1).index_select(1, self.pairs)
        x = torch.cat([x, products], dim=1)
        for block in self.blocks:
            x = block(x)
        outputs: Tensor = self.head(x)
        return outputs


class Ranking(MultiLabel):
    """The order of each user's rows; see `tasks.Objective` for what it has.

    Targets are ``(rows, 1 + labels)``: the user's number, then flags. Scores are the labels' probabilities, ``(rows, labels)``.

    Args:
        label: ``label`` of the configuration: of a `MultiLabel`, with ``user`` and ``worth``.
    """

    kind = RANKING
    metrics: Sequence[str] = RANKING_METRICS
    fairness: Sequence[str] = ()

    def __init__(self, label: Mapping[str, Any]) -> None:
        super().__init__(label)
        self._worth: Floats = np.array(label["worth"], dtype=np.float64)
        worth = dict(zip(answered(label), label["worth"], strict=True))
        self.learned: Mapping[str, Any] = {**self.learned, "user": label["user"], "worth": worth}
        self.about: Mapping[str, Any] = {**self.about, "user": label["user"], "worth": worth}
        said = ", ".join(f"{name} {value:g}" for name, value in worth.items())
        self.sentence = (
            f"The rows of a {label['user']} are a list, which is judged by what is worth most in it: {said}."
        )
        self.titles: Mapping[str, str] = {}

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """As of several labels."""
        return super().losses(outputs, targets[:, 1:] > 0)

    def evaluate(self, targets: Any, scores: Floats) -> dict[str, float]:
        """The metrics of `contract.TASK_METRICS`: of lists the mean over users, of labels the mean over these."""
        from sklearn.metrics import roc_auc_score  # noqa: PLC0415  takes a second, and packaging scores nothing

        flags, clipped = targets[:, 1:] > 0, scores.clip(CLIP, 1 - CLIP)
        found = {
            "ndcg_at_10": ndcg(targets[:, 0], flags @ self._worth, scores @ self._worth).mean(),
            "roc_auc": np.mean([roc_auc_score(*one) for one in zip(flags.T, scores.T, strict=True)]),
            "log_loss": -np.where(flags, np.log(clipped), np.log1p(-clipped)).mean(),
        }
        return {name: float(value) for name, value in found.items()}

    def compare(self, groups: Any, targets: Any, scores: Floats, asked: Fairness) -> dict[str, Any]:
        """No groups are compared."""
        return Objective.compare(self, groups, targets, scores, asked)

    def differences(self, groups: Any, targets: Any, scores: Floats, smallest: int) -> dict[str, float]:
        """Likewise."""
        return Objective.differences(self, groups, targets, scores, smallest)

    def constant(self, targets: Any, scores: Floats) -> dict[str, Any]:
        """Beside one score for all rows, whose order is then any: what users gain must be more than chance gives."""
        gains, worth = (targets[:, 1:] > 0) @ self._worth, scores @ self._worth
        mine, any_order = ndcg(targets[:, 0], gains, worth), ndcg(targets[:, 0], gains, np.zeros(len(gains)))
        gained, always = mine - any_order, bool((worth == worth[0]).all())
        return {
            "metric": "ndcg_at_10",
            "answer": "the same score",
            "floor": float(any_order.mean()),
            "always": always,
            "better": not always and bool(gained.mean() > CHANCE * gained.std() / len(gained) ** 0.5),
        }


class RankingTask(TabularTask):
    """The order of a user's items; see `tasks.Task` for the methods.

    Args:
        hyperparameters: `spec.training.hyperparameters`.
    """

    def __init__(self, hyperparameters: Mapping[str, Any]) -> None:
        if not hyperparameters.get("user"):
            raise ValueError("user is missing: name the column whose rows are one list")
        self._asked = Hyperparameters.read(hyperparameters)
        super().__init__(hyperparameters, self._asked)

    def targets(self, table: pa.Table, asked: Data) -> Targets:
        """The users' numbers and what the labels' columns say.

        Raises:
            JobFailure: As of several labels; or a row has no user, `worth` names no label or leaves nothing of worth.
        """
        if asked.labels:
            found = targets.of_labels(table, asked)
        else:
            one = targets.read(table, dataclasses.replace(asked, target="binary"))
            found = Targets(one.values[:, None], one.strata, {"labels": [one.label]})
        names = answered(found.label)
        self._refuse(names)
        users = data.coded(table, self._asked.user, f"{FIELD}.user")
        if len(blank := np.flatnonzero(users.codes == users.blank)):
            raise JobFailure(
                FailureClass.DATA_INVALID,
                f"{len(blank)} of {len(users.codes)} rows have no value in {self._asked.user!r}, whose rows are one list: "
                f"first {row_words(int(blank[0]))}",
                "Remove these rows, or write who it was",
                int(blank[0]),
            )
        label = {
            **found.label,
            "kind": RANKING,
            "user": self._asked.user,
            "worth": [float(self._asked.worth.get(name, 1)) for name in names],
        }
        return Targets(np.column_stack([users.codes, found.values]).astype(np.int32), found.strata, label)

    def _refuse(self, names: Sequence[str]) -> None:
        worth = self._asked.worth
        if strange := [name for name in worth if name not in names]:
            why = f"names {', '.join(strange)}, which is no label{did_you_mean(strange[0], names)}"
        elif not any(worth.get(name, 1) for name in names):
            why = "leaves every label worth nothing"
        else:
            why = ""
        if why:
            raise JobFailure(
                FailureClass.SPEC_INVALID, f"{FIELD}.worth {why}", f"Give worth to one of {', '.join(names)}"
            )
        if taken := IN_ANSWERS.intersection(names):
            raise JobFailure(
                FailureClass.SPEC_INVALID,
                f"the label is called {min(taken)}, which every answer has",
                "Rename its column",
            )

    def objective(self, config: Mapping[str, Any]) -> Objective:
        """A `Ranking`."""
        return Ranking(config["label"])

    def choose(self, rows: Rows, targets: Targets, parts: Parts, asked: Data) -> Choice:
        """As of any table; who and what it is about are no identifiers that are left out.

        Raises:
            JobFailure: As of any table; or a column is not there, or a part has no list that could be judged.
        """
        for name in self._asked.ids:
            parting.require(rows.table, name, f"{FIELD}.ids")
        gains = (targets.values[:, 1:] > 0) @ np.array(targets.label["worth"])
        for name in ("validation", "test"):
            part = getattr(parts, name)
            if not len(ndcg(targets.values[part, 0], gains[part], gains[part])):
                raise JobFailure(
                    FailureClass.DATA_INVALID,
                    f"in the {name} part of the split no {self._asked.user} has rows that are worth more than others: there is "
                    "no list to judge",
                    "Add rows of what was not chosen (sampled ones will do), or give the part a larger share in spec.data.split",
                )
        divided = asked.split.by.group if asked.split.by else ""
        kept = {name: "use" for name in (self._asked.user, *self._asked.ids) if name != divided}
        columns: Any = {**kept, **asked.columns}
        return super().choose(rows, flagged(targets), parts, dataclasses.replace(asked, columns=columns))

    def fit(self, table: pa.Table, targets: Targets, rows: npt.NDArray[np.int64]) -> dict[str, Any]:
        """As of any table."""
        return super().fit(table, flagged(targets), rows)

    def measured(self, column: pa.Field) -> bool:
        """Whether a column's numbers measure something."""
        return column.name not in {self._asked.user, *self._asked.ids} and super().measured(column)

    def reference(
        self, config: Mapping[str, Any], inputs: Sequence[Tensor], targets: npt.NDArray[Any]
    ) -> dict[str, Any]:
        """As of any table."""
        return super().reference(config, inputs, targets[:, 1:] > 0)

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """A `RankingModel`."""
        return RankingModel(config)

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        """The hidden blocks, and the layers between numbers and their vector."""
        bottom = [module for name, module in model.named_children() if name == "bottom"]
        return [*bottom, *super().blocks(model)]

    def example(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """As of any table, of nobody."""
        found = super().example(config)
        return {**found, self._asked.user: None} if self._asked.user in found else found


def flagged(found: Targets) -> Targets:
    """Targets without the users' numbers."""
    return dataclasses.replace(found, values=found.values[:, 1:] > 0)


def ndcg(users: Codes, gains: Floats, scores: Floats, places: int = SHOWN_FIRST) -> Floats:
    """Normalised discounted cumulative gain (Järvelin & Kekäläinen 2002) of the first places of each user's list.

    Rows of one score stand in any order: what they gain is the mean over all orders. Of a user whose rows gain the same
    every order is as good, so that there is nothing to judge.

    Args:
        users: Whose row it is.
        gains: What showing the row is worth.
        scores: By which the list is sorted.
        places: That count.

    Returns:
        One value a user who can be judged.
    """
    _, codes = np.unique(users, return_inverse=True)
    if not len(codes):
        return np.empty(0)
    start = np.concatenate([[0], np.cumsum(np.bincount(codes))])[:-1]
    order = np.lexsort((-scores, codes))
    ranks = np.arange(len(codes)) - start[codes[order]]
    discounts = np.where(ranks < places, 1 / np.log2(ranks + 2), 0.0)
    tied = np.cumsum(np.diff(codes[order], prepend=0) != 0) + np.cumsum(
        np.diff(scores[order], prepend=scores[order[0]]) != 0
    )
    found = (np.bincount(tied, gains[order]) / np.maximum(np.bincount(tied), 1))[tied]
    best = gains[np.lexsort((-gains, codes))]
    judged = np.maximum.reduceat(best, start) > np.minimum.reduceat(best, start)
    values: Floats = (
        np.bincount(codes[order], found * discounts)[judged] / np.bincount(codes[order], best * discounts)[judged]
    )
    return values
