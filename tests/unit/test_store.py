"""The store: whole or absent, checked when read, one process a key."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.builders import age, evalset, measured

from checkweigh import canonical
from checkweigh.errors import HostBusy, StoreError
from checkweigh.records.measurement import MeasurementSet
from checkweigh.store import Store

SOURCE = evalset("generation", 40)
RECORD = measured(SOURCE, [float(i % 2) if i % 7 else np.nan for i in range(40)])
OTHER = measured(SOURCE, [1.0] * 40, arm="candidate")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def folder(store: Store, record: MeasurementSet) -> Path:
    return store.root / record.key.record_digest().removeprefix("sha256:")


@pytest.mark.parametrize("kind", ["text", "choice", "generation"])
def test_what_is_written_is_read(store: Store, kind: str) -> None:
    record = measured(evalset(kind, 30), [0.5 if i else np.nan for i in range(30)])
    assert not store.exists(record.key)
    store.write(record)
    assert store.exists(record.key)
    assert store.read(record.key) == record


def test_observations_are_readable_by_others(store: Store) -> None:
    import pyarrow.parquet as pq

    store.write(RECORD)
    table = pq.read_table(folder(store, RECORD) / "observations.parquet")
    assert table.num_rows == 40
    assert set(table.column("outcome").to_pylist()) == {"scored", "failed"}


def test_the_first_record_of_a_key_stays(store: Store) -> None:
    store.write(RECORD)
    other = RECORD.model_copy(update={"stage": RECORD.stage.model_copy(update={"seconds": 99.0})})
    store.write(other)
    assert store.read(RECORD.key).stage.seconds == 1.0


def test_records_of_one_arm_on_one_set_are_found(store: Store) -> None:
    again = RECORD.model_copy(update={"key": RECORD.key.model_copy(update={"replicate": 1})})
    for record in (again, RECORD, OTHER):
        store.write(record)
    (store.root / "damaged").mkdir()
    (store.root / "damaged" / "record.json").write_text("{")
    key = RECORD.key
    assert store.find_executions(pins=key.pins, evalset=key.evalset, scorer=key.scorer) == [RECORD, again]
    assert store.find_executions(pins=key.pins, evalset=canonical.digest("other"), scorer=key.scorer) == []
    assert (
        store.find_executions(
            pins=key.pins, evalset=key.evalset, scorer=key.scorer.model_copy(update={"version": 2})
        )
        == []
    )
    (folder(store, RECORD) / "observations.parquet").write_bytes(b"")
    with pytest.raises(StoreError, match="damaged record"):
        store.find_executions(pins=key.pins, evalset=key.evalset, scorer=key.scorer)


def test_a_missing_record_is_an_error(store: Store) -> None:
    with pytest.raises(StoreError, match=r"record\.json"):
        store.read(RECORD.key)


@pytest.mark.parametrize("name", ["record.json", "observations.parquet"])
def test_every_changed_byte_is_noticed(store: Store, name: str) -> None:
    store.write(RECORD)
    path = folder(store, RECORD) / name
    whole = path.read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(StoreError, match="remove this folder"):
            store.read(RECORD.key)
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(StoreError):
            store.read(RECORD.key)


@pytest.mark.parametrize("text", ["[]", "{}", "null", '"x"', "3", "\xff"])
def test_other_json_is_damage_too(store: Store, text: str) -> None:
    store.write(RECORD)
    (folder(store, RECORD) / "record.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(StoreError):
        store.read(RECORD.key)


def test_a_record_of_another_key_is_refused(store: Store) -> None:
    store.write(OTHER)
    shutil.copytree(folder(store, OTHER), folder(store, RECORD))
    assert store.read(OTHER.key) == OTHER
    with pytest.raises(StoreError, match="does not belong to its address"):
        store.read(RECORD.key)


def test_an_incomplete_record_is_refused_even_when_signed_by_its_digest(store: Store) -> None:
    store.write(RECORD.model_copy(update={"planned": 41}))
    with pytest.raises(StoreError, match="not complete"):
        store.read(RECORD.key)


DONE = (RECORD.observations[:16], 123, 4.5)
WITNESS = canonical.digest("the files of an arm")


def test_batches_are_kept_until_the_record_is_whole(store: Store) -> None:
    batch = canonical.digest(["a batch"])
    assert store.read_batch(RECORD.key, 0, batch, WITNESS) is None
    store.write_batch(RECORD.key, 0, batch, WITNESS, DONE)
    assert store.read_batch(RECORD.key, 0, batch, WITNESS) == (list(DONE[0]), 123, 4.5)
    assert store.read_batch(RECORD.key, 1, batch, WITNESS) is None
    assert not store.exists(RECORD.key)
    store.write(RECORD)
    assert not (folder(store, RECORD) / "batches").exists()


def test_a_batch_of_other_items_or_of_another_arm_is_not_used(store: Store) -> None:
    batch = canonical.digest(["a batch"])
    store.write_batch(RECORD.key, 0, batch, WITNESS, DONE)
    assert store.read_batch(RECORD.key, 0, canonical.digest(["others"]), WITNESS) is None
    shutil.copytree(folder(store, RECORD) / "batches", folder(store, OTHER) / "batches")
    assert store.read_batch(OTHER.key, 0, batch, WITNESS) is None


def test_a_batch_of_other_files_is_not_used_nor_removed(store: Store) -> None:
    batch, other = canonical.digest(["a batch"]), canonical.digest("other files")
    store.write_batch(RECORD.key, 0, batch, WITNESS, DONE)
    assert store.read_batch(RECORD.key, 0, batch, other) is None
    store.drop_batch(RECORD.key, 0, other)
    assert store.read_batch(RECORD.key, 0, batch, WITNESS) is not None
    store.drop_batch(RECORD.key, 0, WITNESS)
    assert store.read_batch(RECORD.key, 0, batch, WITNESS) is None
    store.drop_batch(RECORD.key, 7, WITNESS)


def test_batches_in_the_hands_of_another_stay_when_a_record_is_published(store: Store) -> None:
    batch = canonical.digest(["a batch"])
    store.write_batch(RECORD.key, 0, batch, WITNESS, DONE)
    with store.measuring(RECORD.key):
        store.write(RECORD)
        assert store.read_batch(RECORD.key, 0, batch, WITNESS) is not None
    store.write(RECORD)
    assert not (folder(store, RECORD) / "batches").exists()


def test_a_record_of_an_older_version_is_no_evidence_and_makes_way(store: Store) -> None:
    store.write(RECORD)
    age(folder(store, RECORD))
    assert not store.exists(RECORD.key)
    assert store.is_unverified_digest(RECORD.key.record_digest())
    key = RECORD.key
    assert store.find_executions(pins=key.pins, evalset=key.evalset, scorer=key.scorer) == []
    with pytest.raises(StoreError, match=r"of an older version.*: it counts as unverified"):
        store.read(RECORD.key)
    store.write(RECORD)
    assert store.read(RECORD.key) == RECORD


def test_a_damaged_batch_is_measured_anew(store: Store) -> None:
    batch = canonical.digest(["a batch"])
    store.write_batch(RECORD.key, 0, batch, WITNESS, DONE)
    path = folder(store, RECORD) / "batches" / "0000.json"
    whole = path.read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        assert store.read_batch(RECORD.key, 0, batch, WITNESS) is None, at
    for text in (whole[:-5], b"", b"[]", b"null", b'{"body": 3, "digest": 3}'):
        path.write_bytes(text)
        assert store.read_batch(RECORD.key, 0, batch, WITNESS) is None
    data = json.loads(whole)
    data["body"]["seconds"] = 0.0
    path.write_text(json.dumps(data))
    assert store.read_batch(RECORD.key, 0, batch, WITNESS) is None


def test_a_key_is_measured_by_one_at_a_time(store: Store) -> None:
    with store.measuring(RECORD.key):
        with store.measuring(OTHER.key, wait_s=0.1):
            pass
        with (
            pytest.raises(HostBusy, match="measures the same thing"),
            store.measuring(RECORD.key, wait_s=0.1),
        ):
            pass
    with store.measuring(RECORD.key, wait_s=0.1):
        pass


def test_a_directory_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be (written|locked)"):
        Store(tmp_path / "file").write(RECORD)
