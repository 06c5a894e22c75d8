"""Files of a run (weights, parameters, reports) under one URI, a folder per as_of and run."""

import json
import re
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from winback.models.errors import NotFittedError, SettingsError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from upath import UPath

SURVIVAL = "survival.json"
PROFIT_WEIGHTS, PROFIT_MODEL = "profit.safetensors", "profit.json"
PROFIT_REPORT = "profit_report.json"
CHECKPOINT_TENSORS, CHECKPOINT_STATE = "checkpoint_{parity}.safetensors", "checkpoint.json"
RESPONSE_MODEL, RESPONSE_STACK = "response.safetensors", "response_stack.json"
RESPONSE_HALVES = "response_halves.safetensors"
OVERLAP, PROPENSITIES = "overlap.json", "propensities.safetensors"
PLAN, PLAN_TABLES = "plan.json", "plan.safetensors"
SCORES = "scores_{shard}_of_{shards}.parquet"
GATE = "gate.json"
REPORT = "report.html"


@dataclass(frozen=True)
class Artifacts:
    """The artifact folder of one run; any URI that universal-pathlib knows (file, s3, gs, …).

    ``~`` at the start of ``root_uri`` is the home of the user that the task runs as.
    """

    root_uri: str
    as_of: str
    run_id: str

    @property
    def folder(self) -> "UPath":
        """``<root>/as_of=<date>/<run id>``; characters that some stores refuse become ``_``."""
        run_folder = re.sub(r"[^\w.-]", "_", self.run_id)
        return root_folder(self.root_uri) / f"as_of={self.as_of}" / run_folder

    def uri(self, name: str) -> str:
        """Full address of one artifact, for logs and links."""
        return str((self.folder / name).as_uri())

    def exists(self, name: str) -> bool:
        """Whether an earlier try has already written this artifact."""
        return bool((self.folder / name).exists())

    def write_bytes(self, name: str, content: bytes) -> str:
        """Write one artifact whole or not at all; return its address.

        Raises:
            StoreUnavailableError: the disk is full or the store does not answer.
        """
        path = self.folder / name
        partial = path.with_name(path.name + ".partial")
        with _store_errors(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
            partial.rename(path)
        return str(path)

    def read_bytes(self, name: str) -> bytes:
        """Read one artifact.

        Raises:
            NotFittedError: the task that makes it has not run, or the file is gone.
        """
        path = self.folder / name
        with _store_errors(str(path)):
            try:
                return bytes(path.read_bytes())
            except FileNotFoundError as error:
                raise NotFittedError(
                    f"expected the artifact {path}, found nothing. "
                    "Run the task that makes it again, with the same as_of and run id."
                ) from error

    def write_json(self, name: str, content: Mapping[str, Any]) -> str:
        """Write a JSON artifact (sorted keys, so equal content is equal bytes)."""
        return self.write_bytes(name, json.dumps(content, indent=1, sort_keys=True).encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON artifact."""
        content: dict[str, Any] = json.loads(self.read_bytes(name))
        return content

    def write_arrays(self, name: str, arrays: Mapping[str, Any]) -> str:
        """Write named NumPy arrays as safetensors."""
        import numpy as np
        from safetensors.numpy import save

        return self.write_bytes(name, save({k: np.array(a, order="C") for k, a in arrays.items()}))

    def read_arrays(self, name: str) -> dict[str, Any]:
        """Read named NumPy arrays."""
        from safetensors.numpy import load

        arrays: dict[str, Any] = load(self.read_bytes(name))
        return arrays

    def write_table(self, name: str, table: "pa.Table") -> str:
        """Write an Arrow table as Parquet."""
        import pyarrow as pa
        from pyarrow import parquet

        sink = pa.BufferOutputStream()
        parquet.write_table(table, sink)
        return self.write_bytes(name, sink.getvalue().to_pybytes())

    def read_table(self, name: str) -> "pa.Table":
        """Read an Arrow table."""
        import pyarrow as pa
        from pyarrow import parquet

        return parquet.read_table(pa.BufferReader(self.read_bytes(name)))

    def write_tensors(self, name: str, tensors: Mapping[str, Any]) -> str:
        """Write named tensors as safetensors."""
        from safetensors.torch import save

        return self.write_bytes(name, save({key: t.contiguous() for key, t in tensors.items()}))

    def read_tensors(self, name: str) -> dict[str, Any]:
        """Read named tensors (CPU)."""
        from safetensors.torch import load

        tensors: dict[str, Any] = load(self.read_bytes(name))
        return tensors


def root_folder(uri: str) -> "UPath":
    """Where all artifacts lie.

    Raises:
        SettingsError: it begins with ``~``, and the user has no home.
    """
    from upath import UPath

    try:
        return UPath(uri).expanduser()
    except RuntimeError as error:
        raise SettingsError(
            f"expected an artifacts_uri that can be found, came {uri}: {error} Set HOME, or "
            "WINBACK_ARTIFACTS_URI to a folder that stays."
        ) from error


@contextmanager
def _store_errors(place: str) -> "Iterator[None]":
    try:
        yield
    except OSError as error:
        raise StoreUnavailableError(
            f"cannot use the artifact store at {place}: {error.strerror or error}. "
            "Free some space or correct artifacts_uri, then run the task again."
        ) from error
