"""Rows of evaluation data, as they stand: JSONL (also gzipped), Parquet, and hub data sets through ``datasets``.

A row is numbered from 1: by its line in a JSONL file, by its place elsewhere.
"""

from __future__ import annotations

import difflib
import gzip
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from checkweigh import canonical
from checkweigh.errors import BadDocument, Problem, SourceError, StoreError
from checkweigh.files import disk_full
from checkweigh.progress import Progress
from checkweigh.records.columns import Columns
from checkweigh.records.evalset import Card
from checkweigh.records.yaml.document import load_json
from checkweigh.sources.cache import cache_root

MAX_BYTES = 1 << 30  # of an unpacked file
HUB_S = 10
MAX_PROBLEMS = 20
DataRow = dict[str, Any]
NumberedRows = list[tuple[int, DataRow]]


def data_problem(file: Path | str, line: int | None, path: str, expected: str, found: str) -> Problem:
    """One problem of a card or of its data; ``line`` is None where it has none, ``path`` is dotted or empty."""
    return Problem(file=str(file), line=line, path=path, expected=expected, found=found)


def first_problems(problems: list[Problem], file: Path | str) -> list[Problem]:
    """The first problems, and how many more there are."""
    if len(problems) <= MAX_PROBLEMS:
        return problems
    more = data_problem(file, None, "", "no problems", f"{len(problems) - MAX_PROBLEMS} more")
    return [*problems[:MAX_PROBLEMS], more]


def file_rows(file: Path, columns: Columns | None) -> NumberedRows:
    """All rows of a file; of a Parquet file only the named columns. BadDocument for what is no such file."""
    if file.name.endswith(".parquet"):
        rows = _parquet(file, columns)
    elif file.name.endswith((".jsonl", ".jsonl.gz")):
        rows = json_lines(file)
        if columns is not None:
            _require_columns(columns, list(dict.fromkeys(key for _, row in rows for key in row)), file)
    else:
        raise BadDocument([data_problem(file, None, "", "a .jsonl, .jsonl.gz or .parquet file", file.name)])
    if not rows:
        raise BadDocument([data_problem(file, None, "", "at least one row", "an empty file")])
    return rows


def json_lines(file: Path) -> NumberedRows:
    """Every line that is not blank. BadDocument with every line that is no JSON object."""
    rows: list[tuple[int, Any]] = []
    problems: list[Problem] = []
    for number, line in enumerate(_bytes(file).split(b"\n"), start=1):
        if line.strip():
            try:
                rows.append((number, load_json(line, str(file), number)))
            except BadDocument as error:
                problems += [replace(problem, line=number) for problem in error.problems]
    problems += [
        data_problem(file, number, "", "a JSON object", repr(row)[:80])
        for number, row in rows
        if not isinstance(row, dict)
    ]
    if problems:
        raise BadDocument(first_problems(problems, file))
    return rows


def _bytes(file: Path) -> bytes:
    try:
        if file.suffix != ".gz":
            return file.read_bytes()
        with gzip.open(file) as unpacked:
            data = unpacked.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise BadDocument([data_problem(file, None, "", "a file that can be read", str(error))]) from error
    if len(data) > MAX_BYTES:
        raise BadDocument([data_problem(file, None, "", f"at most {MAX_BYTES} bytes unpacked", "more")])
    return data


def _parquet(file: Path, columns: Columns | None) -> NumberedRows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            there = parquet.schema_arrow.names
            if len(set(there)) != len(there):
                twice = next(name for name in there if there.count(name) > 1)
                raise BadDocument(
                    [data_problem(file, None, "", "column names once each", f"'{twice}' twice")]
                )
            _require_columns(columns, there, file)
            wanted = None if columns is None else sorted(set(columns.named().values()))
            rows = parquet.read(columns=wanted).to_pylist()
    except (pa.ArrowException, OSError, ValueError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadDocument([data_problem(file, None, "", "a Parquet file", reason)]) from error
    return list(enumerate(rows, start=1))


def _require_columns(columns: Columns | None, there: Sequence[str], file: Path | str) -> None:
    """BadDocument that names every column that is named and is in no row, with the nearest that is."""
    problems = []
    for field, column in columns.named().items() if columns is not None and there else ():
        if column not in there:
            near = difflib.get_close_matches(column, there, n=1)
            problem = data_problem(
                file, None, f"columns.{field}", f"one of {', '.join(there)}", f"'{column}'"
            )
            problems.append(replace(problem, suggestion=near[0] if near else None))
    if problems:
        raise BadDocument(problems)


def hub_rows(card: Card, progress: Progress) -> NumberedRows:
    """All rows of a hub data set's split at one commit, the named columns of them.

    From ``datasets``' own cache when the hub cannot be had and the set was loaded before. SourceError when it
    cannot be had at all, or has no such configuration or split: never fewer rows than there are.
    """
    assert card.columns is not None
    repo, _, revision = card.source.removeprefix("hf:").partition("@")
    progress(f"fetching {repo}", 0, 1)
    offline = _hub_unreachable(card.source, repo, revision)
    loaded = _hub_table(card, repo, revision, offline)
    _require_columns(card.columns, loaded.column_names, card.source)
    rows = [dict(row) for row in loaded.select_columns(sorted(set(card.columns.named().values())))]
    progress(f"fetching {repo}", 1, 1)
    if not rows:
        raise BadDocument([data_problem(card.source, None, "", "at least one row", "an empty split")])
    return list(enumerate(rows, start=1))


def _hub_unreachable(source: str, repo: str, revision: str) -> Exception | None:
    """None when the hub has the commit; the error when it cannot be reached; SourceError when it says no."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        HfApi().repo_info(repo, repo_type="dataset", revision=revision, timeout=HUB_S)
    except (HfHubHTTPError, HFValidationError) as error:
        raise SourceError(f"{source}: cannot be fetched ({_first_line(error)})") from error
    except Exception as error:  # the HTTP client's own among them, whatever it is called in this version
        return error
    return None


def _hub_table(card: Card, repo: str, revision: str, offline: Exception | None) -> Any:
    import datasets
    from huggingface_hub import constants

    hidden = datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    asking = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = asking or offline is not None  # else each of its requests is tried six times
    try:
        return datasets.load_dataset(
            repo, name=card.config, split=card.split, revision=revision,
            cache_dir=str(cache_root() / "datasets" / "hub" / canonical.short(canonical.digest(card.source))),
        )  # fmt: skip
    except Exception as error:  # datasets raises its own, the hub's, pyarrow's and plain ValueErrors
        if disk_full(error):
            raise StoreError(
                f"{cache_root() / 'datasets'}: cannot be written ({_first_line(error)})"
            ) from error
        if offline:
            why = f"not in the local cache, and the hub cannot be reached ({_first_line(offline)})"
        else:
            why = f"cannot be loaded ({_first_line(error)})"
        raise SourceError(f"{card.source}: {why}") from error
    finally:
        constants.HF_HUB_OFFLINE = asking
        if not hidden:
            datasets.enable_progress_bars()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def without_nulls(value: Any) -> Any:
    """A copy without the nulls that stand for keys that a row does not have, at every depth."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def rows_digest(rows: Iterable[tuple[int, DataRow]]) -> str:
    """Digest of mapped rows in their order; what a card pins of hub data. BadDocument never: rows are plain."""
    return canonical.digest([row for _, row in rows])
