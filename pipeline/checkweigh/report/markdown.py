"""GitHub-flavoured Markdown for a pull-request comment.

Untrusted text is either ``plain`` (every character that Markdown or HTML would obey is escaped; mentions,
references and bare links are broken by a zero-width space) or a fenced block whose fence is longer than any
run of backticks inside. The whole stays under GitHub's limit of 65,536 characters: what does not fit is left
out from the end and counted.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence

from checkweigh.canonical import short
from checkweigh.decision import formatting
from checkweigh.records.decision import Decision, DivergingToken, Verdict
from checkweigh.report import view
from checkweigh.report.attempt_line import commit_line
from checkweigh.report.safe import clip, one_line, visible
from checkweigh.report.worst_items import ItemPair, left_out, worst_pairs

_MOST = 60_000
_CHANGES = 20
_ITEMS = 5
_TOKENS = 8
_ITEM_TEXT = 700
_SIGN = {Verdict.PASS: "✅", Verdict.INCONCLUSIVE: "⚠️", Verdict.BLOCK: "⛔", Verdict.ERROR: "💥"}
_GAP = "\u200b"
_MARKUP = re.compile(r"([\\`*_{}\[\]()#+!|~$^=:-])")


def plain(text: str, limit: int = 300) -> str:
    """Untrusted text as one line of Markdown that is nothing but text; fit for a table cell."""
    line = one_line(text, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"^(\d+)\.", r"\1\\.", _MARKUP.sub(r"\\\1", line))
    line = (
        re.sub(r"(?i)(www)(\.)", rf"\1{_GAP}\2", line)
        .replace("://", f":{_GAP}//")
        .replace("\\://", f"\\:{_GAP}//")
    )
    line = re.sub(r"(?i)\b(GH)(\\-)(?=\d)", rf"\1{_GAP}\2", line)
    return line.replace("@", f"@{_GAP}").replace("\\#", f"\\#{_GAP}")


def titled(text: str, limit: int = 300) -> str:
    """Untrusted text inside an HTML tag such as ``summary``, where Markdown's own escapes would be shown."""
    return re.sub(r"(?i)&#x27;|://|www\.|@|#|\bGH-|:(?=\w)", _parted, html.escape(one_line(text, limit)))


def _parted(match: re.Match[str]) -> str:
    """What GitHub would make a link, a mention or a picture of, with a gap in it; our own entities stay."""
    matched = match[0]
    return matched if matched.startswith("&") else f"{matched[0]}{_GAP}{matched[1:]}"


def fenced(text: str, limit: int = _ITEM_TEXT) -> str:
    """Untrusted text as a fenced block that it cannot close."""
    body = clip(visible(text), limit)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", body)), default=0))
    return f"{fence}text\n{body}\n{fence}"


def marker(decision: Decision) -> str:
    """The HTML comment by which a later run finds its own comment to update."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", decision.candidate.name)[:100]
    return f"<!-- checkweigh:{re.sub('-{2,}', '-', name)} -->"


def summary(decision: Decision, pairs: Sequence[ItemPair]) -> str:
    """The comment: marker, verdict, reasons, changes, table; worst items and pins folded."""
    head = "\n".join(_head(decision))
    kept, left = [head], 0
    room = _MOST - len(head)
    for part in _parts(decision, pairs):
        if len(part) <= room:
            kept.append(part)
            room -= len(part) + 2
        else:
            left += 1
    if left:
        kept.append(f"_{left} parts did not fit into a comment; report.html has them._")
    return "\n\n".join(kept) + "\n"


def _head(decision: Decision) -> Iterator[str]:
    yield marker(decision)
    yield f"## {_SIGN[decision.verdict]} {view.headline(decision)}"
    yield ""
    yield (
        f"**{plain(decision.baseline.name, 100)} → {plain(decision.candidate.name, 100)}** "
        f"(policy {plain(decision.policy_name, 100)}, exit code {int(decision.exit_code)})"
    )
    yield ""
    yield from (f"- **{plain(line, 400)}**" for line in view.first_lines(decision))
    yield from (f"- {plain(reason, 400)}" for reason in decision.reasons[:20])
    yield from (f"- _{plain(note)}_" for note in view.notes(decision)[:20])


def _parts(decision: Decision, pairs: Sequence[ItemPair]) -> Iterator[str]:
    yield from _table(decision)
    yield _changes(decision)
    if decision.effective_differences:
        yield _effective(decision)
    settle = view.settling_checks(decision)
    if settle:
        lines = [
            f"- {plain(n)}: about {items:,} items would settle it (now {had:,})" for n, had, items in settle
        ]
        yield "\n".join(["**What would settle it**", "", *lines, "", view.RETRY_NOTE])
    for summary in decision.divergence:
        lines = [_token(diverging) for diverging in summary.worst[:_TOKENS]]
        head = "| nats | document | context [token] | baseline → candidate |\n|---|---|---|---|"
        body = "\n".join([plain(view.divergence(summary), 400), "", head, *lines])
        yield _folded("Divergence of the token distributions", body)
    shown = worst_pairs(pairs, _ITEMS)
    if shown:
        yield _folded("Items that got worst", "\n\n".join(_item(pair) for pair in shown))
    if unranked := left_out(pairs):
        yield unranked
    yield _folded(
        "Why these limits",
        "\n".join(f"- {plain(r.id)}: {plain(r.because)}" for r in view.check_rows(decision)),
    )
    yield _folded("Cost, pins and provenance", "\n".join(_provenance(decision)))


def _table(decision: Decision) -> Iterator[str]:
    rows = view.check_rows(decision)
    if not rows:
        return
    bounds = view.bounds_head(decision)
    head = f"| check | tier | effect | {bounds} | limit | result | how sure |\n|---|---|---|---|---|---|---|"
    lines = []
    for r in rows:
        bold = "**" if r.result.prevents_pass else ""
        cells = [plain(c) for c in (r.id, r.tier, r.effect, r.bounds, r.limit, r.word, r.sure)]
        cells[5] = f"{bold}{cells[5]}{bold}"
        lines.append("| " + " | ".join(cells) + " |")
    for start in range(0, len(lines), 60):  # a policy too long for one comment loses its mildest checks first
        yield "\n".join([head, *lines[start : start + 60]])
    yield f"<sub>{plain(view.P_NOTE)}</sub>"


def _changes(decision: Decision) -> str:
    if not decision.changes:
        return "**What changed:** nothing that is pinned"
    lines = [
        f"| {plain(c.path, 100)} | {plain(c.baseline, 120)} | {plain(c.candidate, 120)} |"
        for c in decision.changes[:_CHANGES]
    ]
    left = len(decision.changes) - _CHANGES
    more = [f"\nand {left} more"] if left > 0 else []
    return "\n".join(["| what changed | baseline | candidate |", "|---|---|---|", *lines, *more])


def _effective(decision: Decision) -> str:
    lines = [
        f"| {' | '.join(plain(cell, 120) for cell in (d.field, d.baseline, d.candidate, ', '.join(d.explained)))} |"
        for d in decision.effective_differences[:_CHANGES]
    ]
    left = len(decision.effective_differences) - _CHANGES
    more = [f"\nand {left} more"] if left > 0 else []
    head = ["| what is loaded | baseline | candidate | explained by |", "|---|---|---|---|"]
    return "\n".join([*head, *lines, *more])


def _item(pair: ItemPair) -> str:
    values = formatting.levels(pair.metric, pair.baseline, pair.candidate)
    note = f" ({plain(pair.note)})" if pair.note else ""
    lines = [
        f"**{plain(pair.set_name, 100)} / {plain(pair.id, 100)}**, {plain(pair.metric)} {plain(values)}{note}"
    ]
    for name, text in (
        ("prompt", pair.prompt),
        ("baseline", pair.baseline_text),
        ("candidate", pair.candidate_text),
    ):
        if text is not None:
            lines += [f"{name}:", fenced(text)]
    return "\n\n".join(lines)


def _token(diverging: DivergingToken) -> str:
    token = diverging.token
    context = plain(f"…{token.before[-60:]}[{token.token}]")
    return f"| {token.kl:.2f} | {plain(diverging.item, 80)} | {context} | {plain(view.likeliest_tokens(token))} |"


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"


def _provenance(decision: Decision) -> Iterator[str]:
    for s in decision.stages[:40]:
        how = "stored" if s.stored else "measured"
        yield (
            f"- {plain(s.name)}, {plain(s.arm)}: {s.items:,} items, {s.tokens:,} tokens, "
            f"{formatting.duration(s.seconds)}, {view.speed(s)} tokens/s, {how}"
        )
    for label, arm in (("baseline", decision.baseline), ("candidate", decision.candidate)):
        identity = short(arm.identity) if arm.identity else "none"
        yield (
            f"- {label} {plain(arm.name, 100)}: manifest `{short(arm.manifest)}`, pins `{short(arm.pins)}`, "
            f"engine identity `{identity}`, replicate {arm.replicate}"
        )
    yield f"- policy {plain(decision.policy_name, 100)}: `{short(decision.policy)}`"
    yield from (f"- set {plain(name, 100)}: `{short(value)}`" for name, value in decision.evalsets.items())
    p = decision.provenance
    yield f"- tool {plain(p.tool)}, {plain(commit_line(p), 1000)}"
    if p.documents:
        yield f"- documents: {plain(', '.join(f'{role} {path}' for role, path in p.documents.items()), 1000)}"
    yield f"- hardware {plain(p.hardware)}; {plain(p.started)} to {plain(p.ended)}"
    yield from (f"- {plain(text, 400)}" for text in decision.guarantees)
