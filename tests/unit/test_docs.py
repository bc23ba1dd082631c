"""Documentation is run as tests: commands parse, files and links exist, tables say what the code says."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.core import TyperGroup

from checkweigh.cli import app
from checkweigh.progress import no_progress
from checkweigh.records.evalset import GENERATION_SCORERS
from checkweigh.records.metrics import METRICS
from checkweigh.sources.documents import read_card, read_manifest, read_policy
from checkweigh.sources.evalsets.load_evalset import load_evalset
from checkweigh.usecases.evalset_check import check_evalset

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md"])
COMMANDS = [
    (page.name, line.removeprefix("$ ").split("  #")[0])
    for page in PAGES
    for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]
WRITTEN_FOR_READERS = (".py", ".md", ".toml", ".yaml", ".yml", ".sh", ".j2", "Makefile", ".ci/run")
# Written when a gate, ``ci gate`` or a test runs.
MADE_AT_RUN_TIME = frozenset({"summary.md", "comment.md", "notes.md", "words.md"})
# Reports, studies and rules that were never part of this repository.
NO_DOCUMENT = re.compile(r"\b(STATISTICS|GUARD|PEERS|STYLE|DESIGN|HOSTILE|ENGINES)\b(?![/=\[])")


def tracked() -> list[Path]:
    """Every file of the working tree that git tracks and a person wrote, but the history of changes."""
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    paths = [ROOT / name for name in names if name.endswith(WRITTEN_FOR_READERS) and name != "CHANGELOG.md"]
    return [path for path in paths if path.is_file() and path != Path(__file__)]


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Line number and text of what people read in a file: of Python the comments and strings, else every line."""
    if path.suffix != ".py":
        yield from enumerate(path.read_text("utf-8").splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING) and not re.fullmatch(
            r"""['"]\w+['"]""", token.string
        ):
            yield token.start[0], token.string


def absent(path: Path, text: str, known: set[str]) -> list[str]:
    """Documents that ``text``, of the file ``path``, names and that are not in the repository."""
    names = re.findall(r"(?<![\w./*{}-])[\w./-]+\.md\b", re.sub(r"https?://\S+", "", text))
    return [
        name
        for name in names
        if not any(f"/{document}".endswith(f"/{name}") for document in known)
        and not (path.parent / name).exists()
        and name.rpartition("/")[2] not in MADE_AT_RUN_TIME
    ] + NO_DOCUMENT.findall(text)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_every_document_that_is_named_exists() -> None:
    files = tracked()
    known = {path.relative_to(ROOT).as_posix() for path in files if path.suffix == ".md"} | {"CHANGELOG.md"}
    lost = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in files
        for line, text in prose(path)
        for name in absent(path, text, known)
    ]
    assert not lost, "\n".join(lost)


@pytest.mark.parametrize(("text", "lost"), [
    ("docs/statistics.md, design.md, README.md", []),
    ("see GUARD.md", ["GUARD.md", "GUARD"]), ("(STATISTICS, looks)", ["STATISTICS"]),
    ("docs/none.md", ["docs/none.md"]),
    ("https://example.org/spec.md and PEERS/bin/python", []),
])  # fmt: skip
def test_a_document_that_is_not_there_is_noticed(text: str, lost: list[str]) -> None:
    known = {path.relative_to(ROOT).as_posix() for path in PAGES}
    assert absent(Path(__file__), text, known) == lost


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_commands_in_the_documentation_exist(page: str, line: str) -> None:
    words = shlex.split(line)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    assert words[0] == "checkweigh"
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    command = group.commands[words[1]]
    command.make_context(words[1], words[2:])
    assert all((ROOT / word).exists() for word in words if word.endswith(".yaml"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_the_table_of_metrics_is_the_catalogue() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (\S+) \| ([^|]+) \| ([^|]+) \|$", (ROOT / "docs/policies.md").read_text(), re.M
    )
    documented = {name: (unit, source.strip(), scales.strip()) for name, unit, source, scales in rows}
    assert documented == {
        name: (m.unit, ", ".join(m.kinds) or "timing", ", ".join(m.scales)) for name, m in METRICS.items()
    }


@pytest.mark.parametrize("path", sorted((ROOT / "gates").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_policies_are_sound(path: Path) -> None:
    policy = read_policy(path)
    critical = [check for check in policy.checks if check.tier == "critical" and check.metric != "kl"]
    assert 1 <= len(critical) <= 4, "every critical check costs power (docs/policies.md)"
    assert all((ROOT / "evalsets" / name / "card.yaml").exists() for name in policy.evalsets())


@pytest.mark.parametrize("path", sorted((ROOT / "manifests").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_manifests_are_sound_and_locked(path: Path) -> None:
    assert read_manifest(path).name == path.stem
    assert path.with_suffix(".lock.json").exists()


@pytest.mark.usefixtures("checkweigh_home")
def test_the_ten_line_card_is_enough(tmp_path: Path) -> None:
    (card,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/evalsets.md").read_text(), re.DOTALL)
    assert len(card.splitlines()) == 10
    folder = tmp_path / "support"
    folder.mkdir()
    (folder / "card.yaml").write_text(card)
    pq.write_table(
        pa.table({"question": ["Which day?", "Where?"], "answer": ["Monday", "Oslo"]}),
        folder / "tickets.parquet",
    )
    checked = check_evalset(folder, None, no_progress)
    assert (checked.exit_code, checked.items) == (2, 2)
    (folder / "card.yaml").write_text(card.replace("sha256:" + "0" * 64, checked.digest))
    found = load_evalset(folder)
    assert [item.id for item in found.items] == ["row-000001", "row-000002"]


def test_the_table_of_sets_is_what_is_shipped() -> None:
    rows = re.findall(
        r"^\| (`[a-z0-9, `-]+`) \| [^|]+ \| ([0-9, a-z]+) \|$", (ROOT / "docs/evalsets.md").read_text(), re.M
    )
    documented = {}
    for names, counts in rows:
        sizes = [int(count) for count in re.findall(r"\d+", counts)]
        listed = re.findall(r"`([^`]+)`", names)
        documented.update(zip(listed, sizes * len(listed) if len(sizes) == 1 else sizes, strict=False))
    cards = {path.parent.name: read_card(path).items for path in (ROOT / "evalsets").glob("*/card.yaml")}
    assert documented == cards


def test_the_table_of_scorers_is_complete() -> None:
    section = (ROOT / "docs/evalsets.md").read_text().split("## Scorers")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", section, re.M)
    assert [name for row in rows for name in re.findall(r"`(\w+)`", row)] == list(GENERATION_SCORERS)
