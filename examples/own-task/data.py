"""Makes the data of the example: hourly temperatures of a made-up year of days and seasons, 24 readings and the next one."""

from __future__ import annotations

import argparse
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mljobs.store import Store

READINGS = 24


def table(rows: int) -> pa.Table:
    """Windows of one long series, each a list and what follows it; equal calls give equal rows."""
    generator, hour = np.random.default_rng(7), np.arange(rows + READINGS)
    season, day = np.sin(hour * 2 * np.pi / (24 * 365)), np.sin(hour * 2 * np.pi / 24)
    series = (12 + 8 * season + 4 * day + np.cumsum(generator.normal(0, 0.05, len(hour)))).round(2)
    series += generator.normal(0, 0.4, len(hour)).round(2)
    windows = np.lib.stride_tricks.sliding_window_view(series, READINGS + 1)
    return pa.table({"readings": windows[:rows, :READINGS].tolist(), "next": windows[:rows, READINGS]})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", default="s3://datasets/readings", help="a folder, or one of a bucket")
    parser.add_argument("--rows", type=int, default=8000)
    options = parser.parse_args()
    content = io.BytesIO()
    pq.write_table(table(options.rows), content)
    print(Store(options.to).write("readings.parquet", content.getvalue()))
