"""Generate the second prose set: other works than evalsets/prose, found, filtered and chosen by the same rules.

    python evalsets/prose-more/generate.py --debs DIR    write items.jsonl, refresh sources.json and card.yaml
    python evalsets/prose-more/generate.py --check       verify offline what is committed (exit 1 on a difference)

The rules and the options are those of evalsets/prose/generate.py, which does the work; here are the works only. No
document of the first set is taken again.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIRST = HERE.parent / "prose"

_spec = importlib.util.spec_from_file_location("checkweigh_prose", FIRST / "generate.py")
assert _spec is not None
assert _spec.loader is not None
prose = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = prose  # its dataclasses look themselves up
_spec.loader.exec_module(prose)

LICENCES = {
    "biopython": "Biopython License (HPND-like)",
    "bsl": "BSL-1.0",
    "cmu": "BSD-4-Clause-like (Carnegie Mellon University)",
    "ntp": "NTP AND BSD-2-Clause",
    "rust": "MIT OR Apache-2.0",
    "x11": "X11 (MIT-like)",
    "zlib": "Zlib",
}
DOC = "usr/share/doc"
OPENSTACK = (
    "nova", "neutron", "keystone", "glance", "cinder", "ironic", "manila", "octavia", "ceilometer", "watcher", "trove",
    "heat", "barbican",
)  # fmt: skip
# name, package, folder below usr/share/doc (all HTML files in it), licence
_ROWS = """
swift|swift-doc|swift-doc|apache
taskflow|python-taskflow-doc|python-taskflow-doc/html|apache
stevedore|python-stevedore-doc|python-stevedore-doc/html|apache
openvswitch|openvswitch-doc|openvswitch-doc/html|apache
ovn|ovn-doc|ovn-doc/html|apache
ganeti|ganeti-doc|ganeti/html|bsd2
dpdk|dpdk-doc|dpdk/guides|bsd
ntpsec|ntpsec-doc|ntpsec-doc/html|ntp
twisted-core|twisted-doc|twisted-doc/html/core/howto|mit
twisted-policy|twisted-doc|twisted-doc/html/core/development|mit
twisted-web|twisted-doc|twisted-doc/html/web|mit
ant|ant-doc|ant/manual|apache
sympy-contributing|python-sympy-doc|python-sympy-doc/html/contributing|bsd
sympy-tutorials|python-sympy-doc|python-sympy-doc/html/tutorials|bsd
scipy-dev|python-scipy-doc|python-scipy-doc/html/dev|bsd
scipy-tutorial|python-scipy-doc|python-scipy-doc/html/tutorial|bsd
pypy|pypy3-doc|pypy3/html|mit
scons|scons-doc|scons/HTML|mit
scikit-image|python-skimage-doc|python-skimage-doc/html|bsd
icu|icu-doc|icu-doc/html|mit
astropy-fits|python-astropy-doc|python-astropy-doc/html/io|bsd
astropy-coordinates|python-astropy-doc|python-astropy-doc/html/coordinates|bsd
nim|nim-doc|nim/html|mit
numba-developer|numba-doc|numba-doc/html/developer|bsd2
numba-proposals|numba-doc|numba-doc/html/proposals|bsd2
biopython|python-biopython-doc|python-biopython-doc/Doc|biopython
krb5-admin|krb5-doc|krb5-doc/admin|bsd2
krb5-user|krb5-doc|krb5-doc/user|bsd2
rustc-book|rust-doc|rust-doc/html/rustc|rust
rust-book|rust-doc|rust-doc/html/book|rust
borgbackup|borgbackup-doc|borgbackup/html|bsd
sortedcontainers|python-sortedcontainers-doc|python-sortedcontainers-doc/html|apache
snakemake|snakemake-doc|snakemake/html|mit
distributed|python-distributed-doc|python-distributed-doc/html|bsd
pyro4|pyro4-doc|pyro4-doc/html|mit
wayland|libwayland-doc|wayland/Wayland|x11
glfw|libglfw3-doc|libglfw3-dev/html|zlib
beets|beets-doc|beets/html|mit
certbot|python-certbot-doc|python3-certbot/html|apache
boost-interprocess|libboost1.81-doc|libboost1.81-doc/doc/html/interprocess|bsl
boost-xpressive|libboost1.81-doc|libboost1.81-doc/doc/html/xpressive|bsl
nibabel|python-nibabel-doc|python-nibabel-doc/html|mit
s6|s6-doc|s6|isc
skalibs|skalibs-doc|skalibs|isc
asdf|python-asdf-doc|python-asdf-doc/html|bsd
mypy|mypy-doc|mypy/html|mit
cyrus|cyrus-doc|cyrus-doc/html|cmu
wrapt|python-wrapt-doc|python-wrapt-doc/html|bsd2
scikit-bio|python-skbio-doc|python-skbio-doc/html|bsd
emscripten|emscripten-doc|emscripten-doc/html|mit
pandas|python-pandas-doc|python-pandas-doc/html/development|bsd
logbook|python-logbook-doc|python-logbook-doc/html|bsd
cherrypy|python-cherrypy3-doc|python-cherrypy3-doc/html|bsd
django-rest-framework|python-djangorestframework-doc|python3-djangorestframework/html|bsd2
patsy|python-patsy-doc|python-patsy-doc/html|bsd2
zstandard|python-zstandard-doc|python3-zstandard/html|bsd
notebook|python-notebook-doc|python-notebook-doc/html|bsd
patroni|patroni-doc|patroni/html|mit
sqlfluff|sqlfluff-doc|sqlfluff/html|mit
wtforms|python-wtforms-doc|python-wtforms-doc/html|bsd
nbconvert|python-nbconvert-doc|python-nbconvert-doc/html|bsd
mpmath|python-mpmath-doc|python-mpmath-doc/html|bsd
ipyparallel|python-ipyparallel-doc|python-ipyparallel-doc/html|bsd
fonttools|python-fonttools-doc|fonttools/html|mit
nghttp2|libnghttp2-doc|libnghttp2-doc|mit
toolz|python-toolz-doc|python-toolz-doc/html|bsd
uncertainties|python-uncertainties-doc|python-uncertainties-doc/html|bsd
paste|python-paste-doc|python-paste-doc/html|mit
eventlet|python-eventlet-doc|python-eventlet-doc/html|mit
btrees|python-btrees-doc|python-btrees-doc/html|zpl
mopidy|mopidy-doc|mopidy/html|apache
asciidoctor|asciidoctor-doc|asciidoctor-doc/html|mit
khal|khal-doc|khal-doc/html|mit
x11-lib|libx11-doc|libx11-dev/libX11|x11
x11-xkb|libx11-doc|libx11-dev/XKB|x11
"""
prose.LICENCES.update(LICENCES)
prose.WORKS = (
    *(prose.Work(name, f"{name}-doc", (f"{DOC}/{name}-doc/html/**/*.html",), "apache") for name in OPENSTACK),
    *(
        prose.Work(name, package, (f"{DOC}/{folder}/**/*.html",), licence)
        for name, package, folder, licence in (row.split("|") for row in _ROWS.split())
    ),
    prose.Work("swi-prolog", "swi-prolog-doc", ("usr/share/swi-prolog/doc/Manual/*.html",), "bsd2"),
    prose.Work("tomcat", "tomcat10-docs", ("usr/share/tomcat10-docs/docs/**/*.html",), "apache"),
)
prose.HERE = HERE
prose.SEED = "checkweigh prose-more 1"
prose.KNOWN = frozenset(
    json.loads(line)["text"] for line in (FIRST / "items.jsonl").read_text(encoding="utf-8").splitlines()
)

if __name__ == "__main__":
    raise SystemExit(prose.main())
