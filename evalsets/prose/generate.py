"""Generate the prose set: running English prose by people, for perplexity.

    python evalsets/prose/generate.py            write items.jsonl, refresh sources.json and card.yaml
    python evalsets/prose/generate.py --check    verify offline what is committed (exit 1 on a difference)

The text comes from Debian packages (manuals, guides, public-domain books) named in WORKS, each pinned in
sources.json by version and sha256. `--debs DIR` (or $CHECKWEIGH_DEBS) names a folder that holds the .deb
files; what is missing there is fetched with `apt-get download PACKAGE=VERSION` (a version that left the
mirrors is kept by snapshot.debian.org). `--repin` records the versions found in that folder instead of
insisting on the pins.

A document is a run of consecutive paragraphs of one file: paragraphs follow one another with no heading,
list, table or code between them, and each passes `is_prose`, a fixed filter on its characters and words.
Which runs are taken is decided by a seeded hash of their place, never by what a model makes of them.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import html.parser
import json
import lzma
import os
import re
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from writing import committed, options, report, write  # noqa: E402

SEED = "checkweigh prose 1"
LOW, HIGH = 550, 880  # characters of a document
MAX_PER_WORK = {"docs": 2, "books": 3}
KNOWN: frozenset[str] = frozenset()  # texts that another set has already; evalsets/prose-more fills it

LICENCES = {
    "pd": "public domain",
    "psf": "PSF-2.0",
    "bsd": "BSD-3-Clause",
    "bsd2": "BSD-2-Clause",
    "mit": "MIT",
    "apache": "Apache-2.0",
    "llvm": "Apache-2.0 WITH LLVM-exception",
    "perl": "Artistic-1.0-Perl OR GPL-1.0-or-later",
    "postgresql": "PostgreSQL",
    "hpnd": "HPND",
    "isc": "ISC",
    "mpl": "MPL-2.0",
    "zpl": "ZPL-2.1",
    "ipl": "IPL-1.0 OR EPL-2.0",
    "zsh": "zsh licence (MIT-like)",
    "dual": "Apache-2.0 OR BSD-3-Clause",
    "bsdmit": "BSD-2-Clause OR Apache-2.0",
    "supervisor": "BSD-derived (Repoze Public License)",
}


@dataclass(frozen=True)
class Work:
    """A book, manual or guide: the cluster. `globs` are relative to the unpacked package."""

    name: str
    package: str
    globs: tuple[str, ...]
    licence: str
    stratum: str = "docs"
    symbol: str = ""  # the R object that holds the text


def _w(name: str, package: str, globs: str, licence: str, stratum: str = "docs", symbol: str = "") -> Work:
    return Work(name, package, tuple(globs.split()), licence, stratum, symbol)


PY = "usr/share/doc/python3.11/html"
PERL = "usr/share/perl/5.36.0/pod"
R = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"

_OTHERS = (
    _w("austen-sense-and-sensibility", "r-cran-janeaustenr", R, "pd", "books", "SENSE AND SENSIBILITY"),
    _w("austen-pride-and-prejudice", "r-cran-janeaustenr", R, "pd", "books", "PRIDE AND PREJUDICE"),
    _w("austen-mansfield-park", "r-cran-janeaustenr", R, "pd", "books", "MANSFIELD PARK"),
    _w("austen-emma", "r-cran-janeaustenr", R, "pd", "books", "EMMA"),
    _w("austen-northanger-abbey", "r-cran-janeaustenr", R, "pd", "books", "NORTHANGER ABBEY"),
    _w("austen-persuasion", "r-cran-janeaustenr", R, "pd", "books", "PERSUASION"),
    _w(
        "newton-opticks",
        "golang-1.19-src",
        "usr/share/go-1.19/src/testdata/Isaac.Newton-Opticks.txt",
        "pd",
        "books",
    ),
    _w("python-tutorial", "python3.11-doc", f"{PY}/tutorial/*.html", "psf"),
    _w("python-functional-howto", "python3.11-doc", f"{PY}/howto/functional.html", "psf"),
    _w("python-unicode-howto", "python3.11-doc", f"{PY}/howto/unicode.html", "psf"),
    _w("python-regex-howto", "python3.11-doc", f"{PY}/howto/regex.html", "psf"),
    _w("python-sockets-howto", "python3.11-doc", f"{PY}/howto/sockets.html", "psf"),
    _w("python-logging-howto", "python3.11-doc", f"{PY}/howto/logging.html", "psf"),
    _w("python-curses-howto", "python3.11-doc", f"{PY}/howto/curses.html", "psf"),
    _w("python-faq", "python3.11-doc", f"{PY}/faq/*.html", "psf"),
    _w("python-extending", "python3.11-doc", f"{PY}/extending/*.html", "psf"),
    _w("python-reference", "python3.11-doc", f"{PY}/reference/*.html", "psf"),
    _w("python-library", "python3.11-doc", f"{PY}/library/*.html", "psf"),
    _w("whatsnew-2", "python3.11-doc", f"{PY}/whatsnew/2.?.html", "psf"),
    _w("perlfaq", "perl-doc", f"{PERL}/perlfaq*.pod", "perl"),
    _w("perlreftut", "perl-doc", f"{PERL}/perlreftut.pod", "perl"),
    _w("perlopentut", "perl-doc", f"{PERL}/perlopentut.pod", "perl"),
    _w("perlootut", "perl-doc", f"{PERL}/perlootut.pod", "perl"),
    _w("perlpacktut", "perl-doc", f"{PERL}/perlpacktut.pod", "perl"),
    _w("perlthrtut", "perl-doc", f"{PERL}/perlthrtut.pod", "perl"),
    _w("perlretut", "perl-doc", f"{PERL}/perlretut.pod", "perl"),
    _w("perlport", "perl-doc", f"{PERL}/perlport.pod", "perl"),
    _w("perlhack", "perl-doc", f"{PERL}/perlhack.pod", "perl"),
    _w("perlpolicy", "perl-doc", f"{PERL}/perlpolicy.pod", "perl"),
    _w("perlsec", "perl-doc", f"{PERL}/perlsec.pod", "perl"),
    _w("perlnewmod", "perl-doc", f"{PERL}/perlnewmod.pod", "perl"),
    _w("perlperf", "perl-doc", f"{PERL}/perlperf.pod", "perl"),
    _w("perlipc", "perl-doc", f"{PERL}/perlipc.pod", "perl"),
    _w("perlunitut", "perl-doc", f"{PERL}/perlunitut.pod {PERL}/perlunifaq.pod", "perl"),
    _w("perlgov", "perl-doc", f"{PERL}/perlgov.pod", "perl"),
    _w("postgresql", "postgresql-doc-15", "usr/share/doc/postgresql-doc-15/html/*.html", "postgresql"),
    _w("sqlite", "sqlite3-doc", "usr/share/doc/sqlite3/*.html", "pd"),
    _w("apache-httpd", "apache2-doc", "usr/share/doc/apache2-doc/manual/en/**/*.html", "apache"),
    _w("cmake", "cmake-doc", "usr/share/doc/cmake-data/html/manual/*.html", "bsd"),
    _w(
        "llvm",
        "llvm-14-doc",
        "usr/share/doc/llvm-14/html/*.html usr/share/doc/llvm-14-doc/html/*.html",
        "llvm",
    ),
    _w("clang", "clang-14-doc", "usr/share/doc/clang-14/html/*.html", "llvm"),
    _w("nodejs", "nodejs-doc", "usr/share/doc/nodejs/api/*.html", "mit"),
    _w("zsh", "zsh-doc", "usr/share/doc/zsh-common/html/*.html", "zsh"),
    _w("bind9-arm", "bind9-doc", "usr/share/doc/bind9-doc/arm/*.html", "mpl"),
    _w("postfix", "postfix-doc", "usr/share/doc/postfix/html/*.html", "ipl"),
    _w("varnish-guide", "varnish-doc", "usr/share/doc/varnish/html/users-guide/*.html", "bsd2"),
    _w("varnish-phk", "varnish-doc", "usr/share/doc/varnish/html/phk/*.html", "bsd2"),
    _w("scheme48", "scheme48-doc", "usr/share/doc/scheme48/html/*.html", "bsd"),
    _w("golang", "golang-1.19-doc", "usr/share/doc/golang-1.19-doc/html/*.html", "bsd"),
    _w("ninja", "ninja-build", "usr/share/doc/ninja-build/*.html", "apache"),
    _w(
        "ghc",
        "ghc-doc",
        "usr/share/doc/ghc-doc/html/users_guide/**/*.html usr/share/doc/ghc-doc/users_guide/**/*.html",
        "bsd",
    ),
    _w("erlang", "erlang-doc", "usr/share/doc/erlang-doc/doc/**/*.html", "apache"),
    _w(
        "django",
        "python-django-doc",
        "usr/share/doc/python-django-doc/html/topics/**/*.html "
        "usr/share/doc/python-django-doc/html/intro/*.html usr/share/doc/python-django-doc/html/howto/*.html",
        "bsd",
    ),
    _w(
        "django-internals",
        "python-django-doc",
        "usr/share/doc/python-django-doc/html/internals/**/*.html "
        "usr/share/doc/python-django-doc/html/misc/*.html usr/share/doc/python-django-doc/html/faq/*.html",
        "bsd",
    ),
    _w("sqlalchemy", "python-sqlalchemy-doc", "usr/share/doc/python-sqlalchemy-doc/html/**/*.html", "mit"),
    _w("sphinx", "sphinx-doc", "usr/share/doc/sphinx-doc/html/**/*.html", "bsd2"),
    _w("docutils", "docutils-doc", "usr/share/doc/docutils-doc/docs/**/*.html", "pd"),
    _w(
        "scikit-learn",
        "python-sklearn-doc",
        "usr/share/doc/python-sklearn-doc/html/*.html "
        "usr/share/doc/python-sklearn-doc/html/modules/*.html "
        "usr/share/doc/python-sklearn-doc/html/developers/*.html",
        "bsd",
    ),
    _w("statsmodels", "python-statsmodels-doc", "usr/share/doc/python-statsmodels-doc/html/*.html", "bsd"),
)
_PYTHON = tuple(
    _w(
        name,
        f"python-{name}-doc",
        f"usr/share/doc/python-{name}/html/**/*.html usr/share/doc/python-{name}-doc/**/*.html",
        licence,
    )
    for name, licence in (
        ("flask", "bsd"),
        ("jinja2", "bsd"),
        ("werkzeug", "bsd"),
        ("click", "bsd"),
        ("cryptography", "dual"),
        ("attr", "mit"),
        ("tornado", "apache"),
        ("requests", "apache"),
        ("setuptools", "mit"),
        ("markdown", "bsd"),
        ("babel", "bsd"),
        ("pil", "hpnd"),
        ("lxml", "bsd"),
        ("simpy3", "mit"),
        ("kombu", "bsd"),
        ("gevent", "mit"),
        ("greenlet", "mit"),
        ("coverage", "apache"),
        ("hypothesis", "mpl"),
        ("pytest", "mit"),
        ("mako", "mit"),
        ("bottle", "mit"),
        ("pymongo", "apache"),
        ("pexpect", "isc"),
        ("cffi", "mit"),
        ("xarray", "apache"),
        ("dask", "bsd"),
        ("sqlparse", "bsd"),
        ("pygments", "bsd2"),
        ("ipython", "bsd"),
        ("scrapy", "bsd"),
        ("pint", "bsd"),
        ("h5py", "bsd"),
        ("tables", "bsd"),
        ("itsdangerous", "bsd"),
        ("peewee", "mit"),
        ("pyparsing", "mit"),
        ("ply", "bsd"),
        ("pycryptodome", "bsdmit"),
        ("nacl", "apache"),
        ("waitress", "zpl"),
    )
)
_MORE = (
    _w("cython", "cython-doc", "usr/share/doc/cython-doc/html/src/**/*.html", "apache"),
    _w("alembic", "alembic", "usr/share/doc/alembic/html/*.html", "mit"),
    _w("mkdocs", "mkdocs-doc", "usr/share/doc/mkdocs/html/**/*.html", "bsd2"),
    _w("supervisor", "supervisor-doc", "usr/share/doc/supervisor/html/*.html", "supervisor"),
)
WORKS: tuple[Work, ...] = (*_OTHERS, *_PYTHON, *_MORE)

# --- from files to runs of paragraphs ---

BLOCKS = {
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "pre",
    "table",
    "ul",
    "ol",
    "li",
    "dl",
    "dt",
    "dd",
    "hr",
    "img",
    "blockquote",
    "figure",
    "section",
    "article",
    "nav",
    "header",
    "footer",
    "div",
}
SKIP = {"script", "style", "pre", "table", "nav", "header", "footer", "sup"}
TYPOGRAPHY = str.maketrans(
    {
        "\u00a0": " ",
        "\u2018": "'",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2013": "-",
        "\u2026": "...",
        "\u00b6": "",
        "\ufeff": "",
        "\u00ad": "",
    }
)


class _Html(html.parser.HTMLParser):
    """Runs of <p> paragraphs; any block element between two of them ends the run."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.runs: list[list[str]] = [[]]
        self._text: list[str] | None = None
        self._skip = 0

    def _close(self) -> None:
        if self._text is not None:
            self.runs[-1].append("".join(self._text))
            self._text = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "p":
            self._close()
            self._text = []
        elif tag in BLOCKS:
            self._close()
            self.runs.append([])
        elif tag == "br" and self._text is not None:
            self._text.append(" ")
        if tag in SKIP:
            self._skip += 1

    def handle_endtag(self, tag: str) -> None:
        if tag == "p":
            self._close()
        elif tag in BLOCKS:
            self._close()
            self.runs.append([])
        if tag in SKIP:
            self._skip = max(0, self._skip - 1)

    def handle_data(self, data: str) -> None:
        if self._text is not None and not self._skip:
            self._text.append(data)
        elif self._text is None and data.strip():
            self.runs.append([])  # text outside paragraphs breaks a run


def _unpod(text: str) -> str:
    for _ in range(4):
        text = re.sub(r"[BCFIS]<([^<>]*)>", r"\1", text)
        text = re.sub(r"L<(?:([^<>|]*)\|)?([^<>|]*)>", lambda m: m.group(1) or m.group(2), text)
        text = re.sub(r"X<[^<>]*>|Z<>", "", text)
    return text


def _runs(path: Path, symbol: str) -> list[list[str]]:
    """The file's runs of raw paragraphs."""
    data = path.read_bytes()
    name = path.name
    if name.endswith(".gz"):
        data, name = gzip.decompress(data), name[:-3]
    if symbol:
        lines = _r_text(data, symbol)
        return [[" ".join(part.split("\n")) for part in "\n".join(lines).split("\n\n")]]
    text = data.decode("utf-8", "replace")
    if name.endswith((".html", ".htm")):
        parser = _Html()
        parser.feed(text)
        parser.close()
        return parser.runs
    paragraphs = re.split(r"\n[ \t]*\n", text.replace("\r", ""))
    runs: list[list[str]] = [[]]
    pod = name.endswith(".pod")
    for paragraph in paragraphs:
        body = paragraph.strip("\n")
        mark = r"=|[ \t]" if pod else r"\s*(#|[-*+] |\d+\.\s|```|~~~|    |\t)"
        if re.match(mark, body) or re.search(r"\n[-=~]{3,}\s*$", body):
            runs.append([])
        else:
            runs[-1].append(_unpod(body) if pod else body)
    return runs


def _r_objects(blob: bytes) -> Iterator[bytes]:
    """Decompressed entries of an R lazy-load database (length, optional kind letter, compressed bytes)."""
    at = 0
    while at < len(blob) - 5:
        size = int.from_bytes(blob[at : at + 4], "big")
        kind = blob[at + 4 : at + 5]
        if kind == b"Z":
            filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
            unpack: lzma.LZMADecompressor | zlib._Decompress | bz2.BZ2Decompressor = lzma.LZMADecompressor(
                lzma.FORMAT_RAW, filters=filters
            )
            start = at + 5
        elif kind == b"2":
            unpack, start = bz2.BZ2Decompressor(), at + 5
        else:
            unpack, start = zlib.decompressobj(), at + 4
        out = unpack.decompress(blob[start:])
        if len(out) != size:
            raise ValueError(f"R database: {len(out)} bytes where {size} were announced")
        yield out
        at = len(blob) - len(unpack.unused_data)


def _r_text(blob: bytes, title: str) -> list[str]:
    """The character vector whose first line is the title, out of an R database in XDR format."""
    for entry in _r_objects(blob):
        strings = [m.group(2).decode("utf-8", "replace") for m in _r_strings(entry)]
        if strings and strings[0].strip().upper().startswith(title):
            return strings
    raise ValueError(f"no R object begins with {title!r}")


def _r_strings(entry: bytes) -> Iterator[re.Match[bytes]]:
    at = 0
    while (at := entry.find(b"\x00\x04\x00\x09", at)) >= 0 or (at := -1) >= 0:
        size = int.from_bytes(entry[at + 4 : at + 8], "big")
        match = re.compile(rb"(.{8})(.{%d})" % size, re.S).match(entry, at) if size < 100_000 else None
        if match:
            yield match
            at = match.end()
        else:
            at += 4


COMMON = frozenset(
    [
        "the",
        "of",
        "and",
        "a",
        "to",
        "in",
        "is",
        "that",
        "it",
        "for",
        "as",
        "be",
        "with",
        "by",
        "on",
        "are",
        "this",
        "not",
        "or",
        "an",
        "from",
        "at",
        "which",
        "you",
        "can",
        "if",
        "was",
        "have",
        "has",
        "but",
        "will",
        "they",
        "all",
        "one",
        "their",
        "more",
        "when",
        "there",
        "so",
        "we",
        "his",
        "he",
        "her",
        "she",
        "i",
        "my",
        "your",
        "its",
        "these",
        "any",
        "no",
        "may",
        "some",
        "do",
        "than",
        "other",
        "would",
        "were",
        "been",
        "had",
        "what",
        "who",
        "how",
        "then",
        "them",
        "use",
        "also",
        "only",
        "into",
        "such",
        "most",
        "each",
        "him",
        "me",
        "must",
        "out",
        "up",
        "very",
    ]
)
UNWANTED = re.compile(
    r"copyright|licen[cs]e|permission is|all rights|new in version|changed in version|deprecated since|"
    r"deprecated in|https?:|www\.|click here|table of contents|trademark|generated by|last updated|gutenberg|"
    r"warrant(y|ies)|"
    r"\bthe following\b[^.]*$|see also|illustration|e-?mail:|\bfig(ure)?\.? ?\d|no module documentation|"
    r"^(parameters|returns|raises|note|warning|example|changed|added|bases|type):?\b",
    re.I,
)


def clean(raw: str) -> str:
    text = raw.translate(TYPOGRAPHY).replace("\u2014", " - ").replace("--", " - ")
    text = re.sub(r"(?<!\w)_([^_\n]+)_(?!\w)", r"\1", re.sub(r"\s+", " ", text).strip())
    return re.sub(r" {2,}", " ", text)


def is_prose(text: str) -> bool:
    """Whether a cleaned paragraph reads as running prose: a rule on characters and words only."""
    words = re.findall(r"[A-Za-z']+", text)
    if len(text) < 120 or len(text) > HIGH or len(words) < 20:
        return False
    if not re.match(r"[A-Z\"(]", text) or not re.search(r"[.!?][\")]?$", text):
        return False
    if re.search(
        r"[{}<>|\\=_@#$^*~\[\]`\uFFFD%+&/]|::|\.\.\.?\w|->|\w\.\w{2,}|\(\)|--| \. |\d{4,}-|''|;;", text
    ):
        return False
    if not text.isascii() or UNWANTED.search(text):
        return False
    if sum(c.isalpha() or c in " ,.;:'\"!?-" for c in text) / len(text) < 0.965:
        return False
    if sum(w.lower() in COMMON for w in words) / len(words) < 0.36:
        return False
    odd = sum(bool(re.search(r"[a-z][A-Z]|^[A-Z]{2,}$", w)) for w in words) / len(words)
    return odd <= 0.06


@dataclass(frozen=True)
class Candidate:
    path: str
    index: int
    text: str


def candidates(root: Path, work: Work) -> list[Candidate]:
    """All non-overlapping windows of consecutive good paragraphs in the work's files."""
    found: list[Candidate] = []
    for path in sorted({p for g in work.globs for p in root.glob(g) if p.is_file() and not p.is_symlink()}):
        index = 0
        relative = path.relative_to(root).as_posix()
        if "/_modules/" in relative or "/_sources/" in relative:
            continue
        for run in _runs(path, work.symbol):
            held: list[str] = []
            for raw in [*run, ""]:
                text = clean(raw)
                if is_prose(text) and text not in held and sum(map(len, held)) + len(text) <= HIGH:
                    held.append(text)
                else:
                    held = [text] if is_prose(text) else []
                if sum(map(len, held)) >= LOW:
                    found.append(Candidate(relative, index, "\n\n".join(held)))
                    index, held = index + 1, []
    return found


def choose(work: Work, found: list[Candidate]) -> list[Candidate]:
    """At most the work's share, from different files as far as possible, by a seeded hash of the place."""

    def key(c: Candidate) -> str:
        return hashlib.sha256(f"{SEED}|{work.name}|{c.path}|{c.index}".encode()).hexdigest()

    ranked = sorted(found, key=key)
    taken: list[Candidate] = []
    for fresh in (True, False):
        for c in ranked:
            if len(taken) == MAX_PER_WORK[work.stratum]:
                break
            elsewhere = c.path not in {t.path for t in taken}
            if (elsewhere or not fresh) and all(c.text != t.text for t in taken):
                taken.append(c)
    return sorted(taken, key=lambda c: (c.path, c.index))


# --- packages ---


def unpack(
    package: str, debs: Path, pins: dict[str, dict[str, str]], repin: bool, out: Path
) -> dict[str, str]:
    """Find or fetch the package's .deb, hold it against its pin, unpack it; returns version and sha256."""
    pin = pins.get(package)
    if not repin and pin is None:
        raise SystemExit(f"{package}: not pinned in sources.json (run with --repin)")
    found = sorted(debs.glob(f"{package}_*.deb"))
    if not found:
        wanted = package if repin or pin is None else f"{package}={pin['version']}"
        subprocess.run(["apt-get", "download", wanted], cwd=debs, check=True, stdout=subprocess.DEVNULL)
        found = sorted(debs.glob(f"{package}_*.deb"))
    deb = found[-1]
    digest = hashlib.sha256(deb.read_bytes()).hexdigest()
    version = subprocess.run(
        ["dpkg-deb", "-f", str(deb), "Version"], check=True, capture_output=True, text=True
    ).stdout.strip()
    if not repin and pin is not None and digest != pin["sha256"]:
        raise SystemExit(
            f"{package}: {deb.name} has sha256 {digest}, pinned is {pin['sha256']} ({pin['version']})"
        )
    if not (out / package).exists():
        subprocess.run(["dpkg-deb", "-x", str(deb), str(out / package)], check=True)
    return {"version": version, "sha256": digest, "from": "Debian 12 main"}


def build(
    debs: Path, repin: bool, pins: dict[str, dict[str, str]], cache: Path | None
) -> tuple[list[dict[str, object]], dict[str, dict[str, str]], list[dict[str, str]]]:
    rows: list[dict[str, object]] = []
    packages: dict[str, dict[str, str]] = {}
    works: list[dict[str, str]] = []
    seen: set[str] = set(KNOWN)
    with tempfile.TemporaryDirectory() as scratch:
        out = cache or Path(scratch)
        for work in WORKS:
            if work.package not in packages:
                packages[work.package] = unpack(work.package, debs, pins, repin, out)
            found = [c for c in candidates(out / work.package, work) if c.text not in seen]
            taken = choose(work, found)
            print(f"{work.name}: {len(taken)} of {len(found)}", file=sys.stderr)
            if taken:
                works.append({"work": work.name, "package": work.package, "licence": LICENCES[work.licence]})
            for number, c in enumerate(taken, 1):
                seen.add(c.text)
                rows.append(
                    {
                        "id": f"{work.name}-{number}",
                        "cluster": work.name,
                        "stratum": work.stratum,
                        "text": c.text,
                        "origin": f"{work.package} {packages[work.package]['version']}: {c.path}",
                    }
                )
    used = {w["package"] for w in works}
    return rows, {k: v for k, v in packages.items() if k in used}, works


# --- files ---


def check() -> list[str]:
    """What can be verified without the packages: digest, counts, order, origins, the prose filter."""
    rows, wrong = committed(HERE)
    sources = json.loads((HERE / "sources.json").read_text())
    works = {w["work"]: w for w in sources["works"]}
    order = [w.name for w in WORKS]
    if [r["cluster"] for r in rows] != sorted((r["cluster"] for r in rows), key=order.index):
        wrong.append("items.jsonl: not in the order of WORKS")
    for row in rows:
        work = works.get(row["cluster"])
        head = row["origin"].partition(": ")[0]
        if work is None or f"{work['package']} {sources['packages'][work['package']]['version']}" != head:
            wrong.append(f"{row['id']}: origin {row['origin']!r} is not in sources.json")
        if not all(is_prose(p) and clean(p) == p for p in row["text"].split("\n\n")):
            wrong.append(f"{row['id']}: a paragraph fails the prose filter")
    return wrong


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--debs", type=Path, default=os.environ.get("CHECKWEIGH_DEBS"))
    parser.add_argument("--unpacked", type=Path, help="folder to keep unpacked packages in")
    parser.add_argument("--repin", action="store_true", help="record the package versions found")
    args = parser.parse_args()
    if args.check:
        return report(HERE, check(), "as committed")
    sources = HERE / "sources.json"
    pins = json.loads(sources.read_text())["packages"] if sources.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        rows, packages, works = build(Path(args.debs or scratch), args.repin, pins, args.unpacked)
    sources.write_text(json.dumps({"packages": packages, "works": works}, indent=1, sort_keys=True) + "\n")
    write(HERE, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
