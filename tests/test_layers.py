"""Imports point down: a module may import its own layer or a lower one, and nothing imports the composition root.

Read from the source, not from a running program, so that an import inside a function counts as well.
"""

from __future__ import annotations

import ast
import itertools
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("s3vol", "fuse/s3vol_fuse", "plugin/s3vol_plugin", "bench/s3vol_bench")
LAYERS = {  # first match wins
    "s3vol.cli": 9,  # the composition root: nothing imports it
    "s3vol.commands": 9,
    "s3vol.__main__": 9,
    "s3vol_fuse": 8,
    "s3vol_plugin": 7,  # reaches `s3vol mount` by process, never by import
    "s3vol_bench": 7,  # the same
    "s3vol.fs": 4,
    "s3vol.cache": 3,
    "s3vol.store": 2,
    "s3vol": 1,  # values, errors, options, bucket format
}
FORBIDDEN = set(itertools.permutations(("s3vol_fuse", "s3vol_plugin", "s3vol_bench"), 2))  # siblings


def layer(module: str) -> str:
    """The room that a module belongs to."""
    return next(room for room in LAYERS if module == room or module.startswith(room + "."))


def imports(source: str) -> set[str]:
    """Our own modules that a source text imports; `from s3vol import fs` counts as `s3vol.fs`."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
    names += [f"{n.module}.{a.name}" for n in nodes if isinstance(n, ast.ImportFrom) and n.module for a in n.names]
    return {name for name in names if name.split(".")[0].startswith("s3vol")}


def violations(module: str, source: str) -> list[str]:
    """Imports of `module` that point up, or across to a sibling."""
    here = layer(module)
    return [
        f"{module} imports {name}"
        for name in sorted(imports(source))
        if LAYERS[layer(name)] > LAYERS[here] or (here, layer(name)) in FORBIDDEN
    ]


def modules() -> dict[str, Path]:
    """Every module of the product by its dotted name."""
    found = {}
    for folder in SOURCES:
        base = (ROOT / folder).parent
        for path in (ROOT / folder).rglob("*.py"):
            found[".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def test_imports_point_down() -> None:
    found = modules()
    assert {"s3vol.types", "s3vol.store.base", "s3vol_fuse", "s3vol_plugin"} <= found.keys()
    assert [v for module, path in found.items() for v in violations(module, path.read_text())] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("s3vol.types", "from s3vol.store import base"),
        ("s3vol.store.s3", "import s3vol.cache.base"),
        ("s3vol.cache.journal", "from s3vol.fs.base import Entry"),
        ("s3vol.fs.inodes", "def late():\n    from s3vol_fuse import ops"),
        ("s3vol_fuse.session", "from s3vol.cli import main"),
        ("s3vol_plugin.server", "from s3vol_fuse import session"),
    ],
)
def test_an_import_that_points_up_is_caught(module: str, source: str) -> None:
    assert violations(module, source)


def test_a_frontend_may_use_every_room_below_it() -> None:
    assert (
        violations("s3vol_fuse.ops", "from s3vol.fs.base import FileSystem\nfrom s3vol.errors import S3volError") == []
    )
