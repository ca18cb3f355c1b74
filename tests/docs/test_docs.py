"""What the documents say about the repository is true: commands exist, links resolve, tables match the code."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3vol import errors, failpoints, layout, types

ROOT = Path(__file__).resolve().parents[2]
NOT_OURS = {"__pycache__", "dist"}  # beside every folder that begins with a dot
MAX_LINES = 500


def ours() -> Iterator[Path]:
    """Every file of the repository, found without git: a source archive is tested too."""
    for folder, children, files in os.walk(ROOT):
        children[:] = [c for c in children if c == ".ci" or not (c.startswith(".") or c in NOT_OURS)]
        yield from (Path(folder, name) for name in files if not name.endswith((".pyc", ".lock")))


def texts() -> Iterator[tuple[Path, str]]:
    """Every text file of the repository with its content."""
    for path in ours():
        data = path.read_bytes()
        if b"\0" not in data:
            yield path.relative_to(ROOT), data.decode()


def documents() -> list[Path]:
    """Every Markdown file."""
    return sorted(path for path in ours() if path.suffix == ".md")


def read(name: str) -> str:
    """A document by its path from the root."""
    return (ROOT / name).read_text()


def targets() -> set[str]:
    """The targets of the Makefile that its help lists."""
    return set(re.findall(r"^([a-z]+):.*## ", read("Makefile"), re.MULTILINE))


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, in the usual spelling of Markdown viewers."""
    titles = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def code(text: str) -> str:
    """The blocks and spans of a document that are set as code."""
    return "\n".join(re.findall(r"^```.*?^```|`[^`\n]+`|^    .*$", text, re.MULTILINE | re.DOTALL)).replace(
        "\n    ", "\n"
    )


def errno_name(kind: type[errors.S3volError]) -> str:
    """The symbolic name of a kind's errno."""
    import errno

    return errno.errorcode[kind.errno]


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_make_commands_in_documents_exist(path: Path) -> None:
    named = set(re.findall(r"(?:`|^)make ([a-z]+)", code(path.read_text()), re.MULTILINE))
    assert named <= targets()


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_resolve(path: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    assert broken == []


def test_the_readme_shows_the_two_commands() -> None:
    assert {"demo", "test"} <= set(re.findall(r"^make ([a-z]+)", read("README.md"), re.MULTILINE))


def test_ci_runs_the_command_of_the_readme() -> None:
    assert re.search(r"^make test\b", read(".ci/run"), re.MULTILINE)


def test_the_changelog_has_a_place_for_what_comes_next() -> None:
    assert "## [Unreleased]" in read("CHANGELOG.md")


def test_scripts_parse_and_may_be_run() -> None:
    scripts = [path for path in ours() if path.read_bytes().startswith(b"#!/usr/bin/env bash")]
    assert {"run", "bootstrap", "demo", "test"} <= {path.name for path in scripts}
    for path in scripts:
        subprocess.run(["bash", "-n", str(path)], check=True)
        assert path.stat().st_mode & stat.S_IXUSR, path


def test_no_path_of_a_machine_is_in_the_tree() -> None:
    homes = re.compile("/(?:" + "|".join(["ro" + "ot", "ho" + r"me/\w+", "Us" + r"ers/\w+", "wo" + "rk"]) + ")/")
    found = [f"{path}: {match[0]}" for path, text in texts() if (match := homes.search(text))]
    assert found == []


def test_no_python_file_is_too_long_to_be_one_room() -> None:
    long = {
        str(path): text.count("\n") for path, text in texts() if path.suffix == ".py" and text.count("\n") > MAX_LINES
    }
    assert long == {}


def test_every_console_script_of_the_package_exists() -> None:
    scripts = tomllib.loads(read("pyproject.toml"))["project"]["scripts"]
    for target in scripts.values():
        module, _, function = target.partition(":")
        probe = f"import {module} as m; assert callable(m.{function})"
        subprocess.run([sys.executable, "-c", probe], check=True, cwd=ROOT)


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_subcommands_in_documents_exist(path: Path) -> None:
    named = set(re.findall(r"(?:`|^)s3vol ([a-z]+)", code(path.read_text()), re.MULTILINE))
    usage = "import sys; from s3vol.cli import main; sys.exit(main(['--help']))"
    done = subprocess.run([sys.executable, "-c", usage], check=True, capture_output=True, text=True, cwd=ROOT)
    assert named <= set(re.findall(r"^    ([a-z]+) ", done.stdout, re.MULTILINE))


def test_the_readme_lists_the_exit_statuses_of_the_command_line() -> None:
    said = re.search(r"^Exit statuses: (.*?)\n\n", read("s3vol/cli.py"), re.MULTILINE | re.DOTALL)
    assert said is not None
    rows = re.findall(r"^\| (\d+) \|", read("README.md"), re.MULTILINE)
    assert rows == re.findall(r"\b(\d+) ", said[1])


def test_the_semantics_list_every_kind_of_error_with_its_errno() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.S3volError)]
    kinds = [kind for kind in kinds if kind not in (errors.S3volError, errors.PosixError)]
    rows = re.findall(r"^\| `(\w+)` \| (E\w+) \|", read("docs/SEMANTICS.md"), re.MULTILINE)
    assert set(rows) == {(kind.__name__, errno_name(kind)) for kind in kinds}


def test_the_format_names_what_the_code_writes() -> None:
    text = read("docs/format.md")
    names = [types.NONCE, layout.TOMBSTONE, layout.LINK, layout.LINK_NAME, layout.LINK_PATH, layout.LINK_FROM]
    names += [layout.LINK_COUNT, layout.LINK_BUSY]
    missing = [name for name in names if f"`{layout.META_PREFIX}{name}`" not in text]
    limits = [layout.NAME_MAX_BYTES, layout.KEY_MAX_BYTES, layout.METADATA_MAX_BYTES]
    missing += [f"{limit:,}" for limit in limits if f"{limit:,} bytes" not in text]
    ours = [value for value in vars(layout).values() if isinstance(value, str) and value.startswith(layout.RESERVED)]
    missing += [key for key in ours if f"`{key}`" not in text]
    assert missing == []


def test_every_crash_point_is_explained() -> None:
    text = read("docs/concurrency.md")
    assert [point.value for point in failpoints.Point if f"`{point.value}`" not in text] == []


def test_the_index_of_rfcs_lists_every_one() -> None:
    numbered = {path.name for path in (ROOT / "docs/rfcs").glob("[0-9]*.md")}
    assert numbered == set(re.findall(r"\]\((\d+[\w-]+\.md)\)", read("docs/rfcs/README.md")))
