"""The half that learns what comes after some readings, and the range that it lies in nine times of ten."""

import numpy as np
from torch import nn

from forecast.served import scores
from mljobs.tasks import HANDLER, Objective, Strata, Targets, Task


class Range(Objective):
    kind, metrics = "a number with its range", ("pinball", "coverage")
    less_is_better = in_label_units = ("pinball",)
    quantiles = np.array([0.05, 0.5, 0.95])

    def __init__(self, config):
        self._config = config

    def loss(self, outputs, targets):
        error = ((targets - self._config["mean"]) / self._config["scale"]).to(outputs.dtype)[:, None] - outputs
        share = outputs.new_tensor(self.quantiles)
        return (share * error).maximum((share - 1) * error).mean()

    def scores(self, outputs):
        return scores(self._config, outputs)

    def evaluate(self, targets, scores):
        error, inside = targets[:, None] - scores, (scores[:, 0] <= targets) & (targets <= scores[:, 2])
        pinball = np.maximum(self.quantiles * error, (self.quantiles - 1) * error).mean()
        return {"pinball": float(pinball), "coverage": float(inside.mean())}

    def off(self, answer, wanted):
        return max(abs(answer[name] - wanted[i]) for i, name in enumerate(("low", "prediction", "high")))


class Forecast(Task):
    modules = (HANDLER, "forecast.served")

    def targets(self, table, data):
        values = table.column(data.label).to_numpy()
        return Targets(values, Strata(np.zeros(len(values), np.int64), ("the data",), least=2), {"name": data.label})

    def fit(self, table, targets, rows):
        shape = {"readings": len(table.column("readings")[0]), "hidden": self.hyperparameters.get("hidden", 32)}
        return {**shape, "mean": float(targets.values[rows].mean()), "scale": float(targets.values[rows].std())}

    def objective(self, config):
        return Range(config)

    def build(self, config):
        return nn.Sequential(nn.Linear(config["readings"], config["hidden"]), nn.ReLU(), nn.Linear(config["hidden"], 3))

    def example(self, config):
        return {"readings": [round(config["mean"], 1)] * config["readings"]}
