"""The half that travels: how records are read, and what outputs say. It imports torch and the standard library only."""

import torch


def scores(config, outputs):
    return outputs.double().sort(dim=1).values * config["scale"] + config["mean"]


class Served:
    names = ("readings",)

    def __init__(self, config):
        self._config, self.width = config, config["readings"]

    def read(self, records, first=0):
        for i, record in enumerate(records, first):
            values = record.get("readings") if isinstance(record, dict) else None
            if not isinstance(values, list) or [type(value) in {int, float} for value in values] != [True] * self.width:
                raise ValueError(f"record {i}: readings must be a list of {self.width} numbers")
        values = torch.tensor([record["readings"] for record in records], dtype=torch.float64)
        return (((values - self._config["mean"]) / self._config["scale"]).float(),)

    def answers(self, outputs):
        columns = zip(("low", "prediction", "high"), scores(self._config, outputs).T.tolist(), strict=True)
        return {name: ("FP64", values) for name, values in columns}
