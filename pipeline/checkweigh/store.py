"""Measurement store: content-addressed by measurement key, written by rename, checked when read.

::

    ROOT/<hex of the key's digest>/
        batches/0000.json ...    while it is measured: one file a batch, with its digest inside
        states/                  while a divergence is measured: what the engines hand each other
        observations.parquet     all observations
        record.json              the rest, with the Parquet file's digest and its own; written last

A record without a sound ``record.json`` does not exist, and neither does one of an older version, whose files nobody
read again after loading. A killed run leaves batches, and the next one goes on from those that were measured with the
very files that it has (``witness``). One process at a time measures a key; others wait for it.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from checkweigh import canonical
from checkweigh.decision.slices import FIRST_PART_PLAN, merge_measurements
from checkweigh.errors import HostBusy, StoreError
from checkweigh.files import lock, read_sealed, write_atomic, write_sealed
from checkweigh.records.evalset import AnyScorer
from checkweigh.records.measurement import MeasurementKey, MeasurementSet, Observation

PUBLISH_S = 600.0  # one record at a time, of whatever process
UNVERIFIED = "checkweigh/measurement@1"
UNVERIFIED_WORDS = "of an older version, which did not read the model's files again: it counts as unverified"
_OBSERVATIONS: TypeAdapter[list[Observation]] = TypeAdapter(list[Observation])


class Store:
    """A store below one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _folder(self, key: MeasurementKey) -> Path:
        return self.root / key.record_digest().removeprefix("sha256:")

    def exists(self, key: MeasurementKey) -> bool:
        """Whether a complete record is there that counts."""
        return self.exists_digest(key.record_digest())

    def read(self, key: MeasurementKey) -> MeasurementSet:
        """The record of a key. StoreError when it is damaged, or is not what its address says."""
        return self.read_digest(key.record_digest())

    def exists_digest(self, digest: str) -> bool:
        """As ``exists``, by the digest of the key."""
        folder = self.root / digest.removeprefix("sha256:")
        return (folder / "record.json").is_file() and not is_unverified(folder)

    def is_unverified_digest(self, digest: str) -> bool:
        """Whether the record with this key's digest is of an older version."""
        return is_unverified(self.root / digest.removeprefix("sha256:"))

    def read_digest(self, digest: str) -> MeasurementSet:
        """As ``read``, by the digest of the key."""
        folder = self.root / digest.removeprefix("sha256:")
        if is_unverified(folder):
            raise StoreError(f"{folder}: a record {UNVERIFIED_WORDS}")
        try:
            data, parquet = read_verified_fields(folder)
            data["observations"] = _from_parquet(parquet)
            record = MeasurementSet.model_validate_json(json.dumps(data))
            if record.key.record_digest() != digest or record.planned != len(record.observations):
                raise ValueError("the record does not belong to its address or is not complete")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{folder}: damaged record ({error}); remove this folder to measure again"
            ) from error
        return record

    def find_executions(self, *, pins: str, evalset: str, scorer: AnyScorer) -> list[MeasurementSet]:
        """Executions of one arm on one set, of any engine and host; the first ones first.

        Parts that belong to one execution come together as one record, which may hold less than the set.
        """
        by_execution: dict[str, list[MeasurementKey]] = defaultdict(list)
        for path in sorted(self.root.glob("*/record.json")):
            with suppress(OSError, ValueError, KeyError, TypeError):  # damaged, and of another key
                key = MeasurementKey.model_validate_json(
                    canonical.dumps(json.loads(path.read_bytes())["key"])
                )
                same = (key.pins, key.evalset, key.scorer) == (pins, evalset, scorer)
                if same and not is_unverified(path.parent):
                    execution = key.model_copy(update={"batches": min(key.batches, FIRST_PART_PLAN)})
                    by_execution[execution.record_digest()].append(key)
        executions = sorted(
            by_execution.items(),
            key=lambda kv: (kv[1][0].replicate, kv[1][0].batches >= FIRST_PART_PLAN, kv[0]),
        )
        return [merge_measurements(self._disjoint(keys)) for _, keys in executions]

    def _disjoint(self, keys: Sequence[MeasurementKey]) -> list[MeasurementSet]:
        """The records of these keys, largest first, leaving out those that hold an item once more."""
        kept: list[MeasurementSet] = []
        seen: set[str] = set()
        for record in sorted((self.read(key) for key in keys), key=lambda r: (-r.planned, r.key.batches)):
            items = {o.item for o in record.observations}
            if not items & seen:
                kept.append(record)
                seen |= items
        return kept

    def write(self, record: MeasurementSet) -> None:
        """Publish a record; its batches go, unless somebody is measuring with them. The first of a key stays."""
        with lock(self.root / "publish.lock", timeout_s=PUBLISH_S, what="stores a measurement"):
            if not self.exists(record.key):
                self._publish(record)
        with suppress(HostBusy), self.measuring(record.key, wait_s=0):
            shutil.rmtree(self._folder(record.key) / "batches", ignore_errors=True)

    def _publish(self, record: MeasurementSet) -> None:
        folder = self._folder(record.key)
        parquet = _to_parquet(record.observations)
        data = record.model_dump(mode="json", exclude={"observations"})
        data["parquet"] = canonical.digest_bytes(parquet)
        data["digest"] = canonical.digest(data)
        write_atomic(folder / "observations.parquet", parquet)
        write_atomic(folder / "record.json", canonical.dumps(data).encode())

    def read_batch(
        self, key: MeasurementKey, index: int, digest: str, witness: str
    ) -> tuple[list[Observation], int, float] | None:
        """Observations, tokens and seconds of a batch kept earlier; None if it is absent or not whole.

        None too for one that was measured with other files than those of ``witness``.
        """
        path = self._folder(key) / "batches" / f"{index:04d}.json"
        with suppress(OSError, ValueError, KeyError, TypeError):
            body = read_sealed(path)
            if (body["key"], body["batch"], body["witness"]) == (key.record_digest(), digest, witness):
                observations = _OBSERVATIONS.validate_json(json.dumps(body["observations"]))
                return observations, int(body["tokens"]), float(body["seconds"])
        return None

    def write_batch(
        self, key: MeasurementKey, index: int, digest: str, witness: str, done: tuple[Sequence[Observation], int, float]
    ) -> None:  # fmt: skip
        """Keep one batch: (observations, tokens, seconds). ``witness``: of the files that it was measured with."""
        observations, tokens, seconds = done
        body = {
            "key": key.record_digest(),
            "batch": digest,
            "witness": witness,
            "observations": [o.model_dump(mode="json") for o in observations],
            "tokens": tokens,
            "seconds": seconds,
        }
        write_sealed(self._folder(key) / "batches" / f"{index:04d}.json", body)

    def drop_batch(self, key: MeasurementKey, index: int, witness: str) -> None:
        """Remove a batch that was measured with these files; one that another process measured since stays."""
        path = self._folder(key) / "batches" / f"{index:04d}.json"
        with suppress(OSError, ValueError, KeyError, TypeError):
            if read_sealed(path)["witness"] == witness:
                path.unlink()

    @contextmanager
    def exchange_folder(self, key: MeasurementKey) -> Iterator[Path]:
        """An empty folder for as long as a key is measured. What a killed gate left there is removed first.

        It lies here and not in the system's temporary directory because there nobody would ever remove it.
        """
        folder = self._folder(key) / "states"
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        except OSError as error:
            raise StoreError(f"{folder}: cannot be written ({error})") from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def measuring(
        self, key: MeasurementKey, *, wait_s: float = 3600, waiting: Callable[[], None] | None = None
    ) -> Iterator[None]:
        """Held while a key is measured, so that two gates do not measure the same thing at once; HostBusy.

        ``waiting`` is called once when somebody else is at it.
        """
        with lock(
            self._folder(key).with_suffix(".lock"), timeout_s=wait_s, what="measures the same thing", waiting=waiting
        ):  # fmt: skip
            yield


def is_unverified(folder: Path) -> bool:
    """Whether a folder holds a record of an older version, whose files nobody read again after loading."""
    try:
        return bool(json.loads((folder / "record.json").read_bytes())["schema"] == UNVERIFIED)
    except (OSError, ValueError, KeyError, TypeError):
        return False  # absent or damaged, which reading it says


def read_verified_fields(folder: Path) -> tuple[dict[str, Any], bytes]:
    """A record's fields, and the bytes of its observations. ValueError when a file is another than was written."""
    fields = json.loads((folder / "record.json").read_bytes())
    if fields.pop("digest") != canonical.digest(fields):
        raise ValueError("record.json is not the file that was written")
    parquet = (folder / "observations.parquet").read_bytes()
    if fields.pop("parquet") != canonical.digest_bytes(parquet):
        raise ValueError("observations.parquet is not the file that was written")
    return fields, parquet


def _to_parquet(observations: Sequence[Observation]) -> bytes:
    """One row an observation; readable with datasets, DuckDB and pandas."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = pa.map_(pa.string(), pa.float64())
    text, real = pa.string(), pa.float64()
    token = pa.struct(
        [("position", pa.int64()), ("kl", real), ("before", text), ("token", text), ("baseline", text),
         ("baseline_p", real), ("candidate", text), ("candidate_p", real)]
    )  # fmt: skip
    schema = pa.schema(
        [
            ("item", pa.string()), ("replicate", pa.int64()), ("batch", pa.int64()), ("outcome", pa.string()),
            ("values", numbers), ("weights", numbers), ("reason", pa.string()), ("detail", pa.string()),
            ("raw", pa.string()), ("text", pa.string()), ("output_tokens", pa.int64()), ("finish", pa.string()),
            ("kl", pa.list_(pa.float64())), ("worst", pa.list_(token)),
        ]
    )  # fmt: skip
    rows = []
    for observation in observations:
        row = observation.model_dump(mode="json")
        outcome = row.pop("outcome")
        row["outcome"] = outcome.pop("kind")
        row |= {name: list(outcome[name].items()) for name in ("values", "weights") if name in outcome}
        row |= {name: outcome[name] for name in ("reason", "detail") if name in outcome}
        rows.append(row)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    return bytes(sink.getvalue())


def _from_parquet(data: bytes) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    observations = []
    for row in pq.read_table(pa.BufferReader(data)).to_pylist():
        kind = row.pop("outcome")
        fields = {name: row.pop(name) for name in ("values", "weights", "reason", "detail")}
        if kind == "scored":
            outcome = {name: dict(fields[name]) for name in ("values", "weights")}
        else:
            outcome = {name: fields[name] for name in ("reason", "detail")}
        observations.append({**row, "outcome": {"kind": kind, **outcome}})
    return observations
