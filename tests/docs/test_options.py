"""docs/options.md is what `s3vol options --markdown` prints, and the command line knows every option of the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3vol.cli import parse
from s3vol.commands.options import markdown, plain
from s3vol.commands.plan import load_options
from s3vol.config import OPTIONS, SHORTS
from s3vol.layers import parse_list
from s3vol.store.settings import Source

PAGE = Path(__file__).resolve().parents[2] / "docs" / "options.md"


def test_the_page_is_what_the_command_prints() -> None:
    assert PAGE.read_text() == markdown(), "run `s3vol options --markdown > docs/options.md`"


def test_every_option_is_on_the_page_with_its_default_and_in_the_help() -> None:
    for row in OPTIONS.values():
        assert f"| `{row.name}` |" in PAGE.read_text()
        assert row.shown in PAGE.read_text()
        assert f"--{row.name}" in plain()
    for short in SHORTS:
        assert f"| `{short.name}` | `{short.stands_for}={short.yes}` |" in PAGE.read_text()


def test_the_example_of_the_page_is_a_file_that_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = PAGE.read_text()
    begin = text.index("```toml") + len("```toml")
    file = tmp_path / "config.toml"
    file.write_text("\n".join(line.strip() for line in text[begin : text.index("```", begin)].splitlines()))
    monkeypatch.delenv("S3VOL_CONFIG", raising=False)
    args = parse(["mount", "--config", str(file), "s3://bucket", "/mnt"])
    options = load_options(args, Source("s3", bucket="bucket"))
    assert (options.cache_size, options.endpoint, options.close) == (20 << 30, "https://minio.example:9000", "local")


def test_a_default_as_it_is_shown_means_the_default() -> None:
    for row in OPTIONS.values():
        if row.group == "Log" or " " in row.shown or "`" in row.shown:
            continue  # decided when mounting
        default = load_options(parse(["mount", "b", "/mnt"]), Source("s3", bucket="b"))
        assert row.parse(row.shown) == getattr(default, row.name.replace("-", "_")), row.name


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_every_option_can_be_given_as_flag_and_in_a_list(name: str) -> None:
    row = OPTIONS[name]
    value = {"uid": "0", "gid": "0", "endpoint": "http://x"}.get(
        name, row.parse.words[0] if hasattr(row.parse, "words") else "1"
    )
    words = [f"--{name}"] if row.is_flag else [f"--{name}", value]
    assert parse(["mount", *words, "b", "/mnt"]).given == {name: "yes" if row.is_flag else value}
    listed = name.replace("-", "_") + ("" if row.is_flag else f"={value}")
    assert parse_list(listed) == {name.replace("-", "_"): "yes" if row.is_flag else value}
