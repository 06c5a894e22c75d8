"""What this machine can do at most, measured beside the steps: memory, arithmetic, COPY."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numba import njit, prange

from winback.operators.bench_measure import BenchError

TRIAD_NUMBERS = 1 << 24  # 128 MB per array: far beyond every cache
MATRIX = 2048  # rows and columns: long enough for the peak, a fraction of a second
COPY_ROWS = 200_000  # about 20 MB
RUNS = 5  # the best counts: a limit is what the machine can do

LIMITS = {  # name: (unit, words)
    "triad": (1e9, "GB/s of memory, triad a = b + s·c on all cores"),
    "matmul": (1e9, "GFLOP/s, float32 matrix product on all cores"),
    "matmul_one_core": (1e9, "GFLOP/s, float32 matrix product on one core"),
    "copy": (1e6, "MB/s (as Arrow counts them), COPY of ready bytes into Postgres"),
}


def measure_limits(place: Mapping[str, Any]) -> dict[str, float]:
    """Bytes or operations per second by name, from a fresh process.

    ``copy`` is left out without a server.

    Raises:
        BenchError: the process failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps(dict(place)),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise BenchError(f"the machine's limits could not be measured:\n{done.stderr[-1000:]}")
    limits: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return limits


def best_rate(work: float, run: Callable[[], Any]) -> float:
    """Work per second of the quickest of RUNS runs, after one to warm up."""
    run()
    seconds = []
    for _ in range(RUNS):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return work / min(seconds)


def triad_rate(numbers: int = TRIAD_NUMBERS) -> float:
    """Bytes per second of a = b + s·c (McCalpin's STREAM), two read and one written."""
    a, b, c = np.zeros(numbers), np.ones(numbers), np.ones(numbers)
    return best_rate(3 * 8.0 * numbers, lambda: _triad(a, b, c, 3.0))


@njit(parallel=True, cache=False)
def _triad(a, b, c, s):  # type: ignore[no-untyped-def]
    for i in prange(a.size):
        a[i] = b[i] + s * c[i]


def matmul_rate(threads: int | None = None, size: int = MATRIX) -> float:
    """Floating-point operations per second of a square float32 product."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    a, b = torch.rand(size, size), torch.rand(size, size)
    rate = best_rate(2.0 * size**3, lambda: a @ b)
    torch.set_num_threads(before)
    return rate


def copy_rate(url: str, rows: int = COPY_ROWS) -> float:
    """Bytes per second that Postgres takes by COPY, counted as the Arrow rows that they are."""
    import psycopg

    from winback.operators.bench_rows import create_table, make_rows, raw_bytes, send_raw

    name, table = "bench_limit", make_rows(rows)
    create_table(url, name)
    block = raw_bytes(url, name, table)

    def run() -> None:
        with psycopg.connect(url) as connection:
            connection.execute("truncate winback_work.bench_limit")
            send_raw(connection, name, block)

    return best_rate(float(table.nbytes), run)


def main() -> None:
    """Print the limits as JSON; the place comes on standard input."""
    place = json.load(sys.stdin)
    limits = {
        "triad": triad_rate(),
        "matmul": matmul_rate(),
        "matmul_one_core": matmul_rate(threads=1),
    }
    if "postgres" in place:
        limits["copy"] = copy_rate(place["postgres"])
    print(json.dumps(limits))


if __name__ == "__main__":
    main()
