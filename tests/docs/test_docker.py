"""What docs/docker.md tells people to type can be typed, and the map of the driver names every room of it."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from s3vol.cli import parse
from s3vol_plugin.options import parse_options
from s3vol_plugin.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "docker.md"


def lines(text: str) -> Iterator[str]:
    """Command lines: those of code blocks, continued ones joined, and spans."""
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from (line.strip() for line in block.replace("\\\n", " ").splitlines())
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def commands(program: str, *, page: Path = PAGE) -> list[list[str]]:
    """Arguments of each complete command line of a program; one with an ellipsis, or a bare name of it, is none."""
    found = [shlex.split(line, comments=True) for line in lines(page.read_text()) if line.startswith(f"{program} ")]
    return [words[1:] for words in found if "…" not in " ".join(words)]


def test_every_command_line_of_s3vol_parses() -> None:
    typed = [words for page in (PAGE, ROOT / "README.md") for words in commands("s3vol", page=page)]
    for words in typed:
        if len(words) > 1:  # else it is spoken of, not typed
            parse(words)
    assert {words[1] for words in typed if words[0] == "volume" and words[1:]} >= {"import", "undelete", "mounts"}


def test_every_volume_that_is_created_there_can_be() -> None:
    made = 0
    for words in commands("docker"):
        if words[:2] != ["volume", "create"] or "s3vol" not in words:
            continue
        given = dict(word.split("=", 1) for flag, word in itertools.pairwise(words) if flag == "-o" and "=" in word)
        given.pop("credentials", None)  # a file of the node
        assert parse_options(words[-1], given, Settings(source="s3://volumes")).name == words[-1]
        made += 1
    assert made >= 4


def test_the_map_of_the_driver_names_every_room() -> None:
    rooms = {path.stem for path in (ROOT / "plugin/s3vol_plugin").glob("*.py")} - {"__init__", "__main__"}
    section = (ROOT / "ARCHITECTURE.md").read_text().partition("## The volume driver")[2].partition("\n## ")[0]
    missing = {room for room in rooms if f"`{room}`" not in section}
    assert missing == set()
