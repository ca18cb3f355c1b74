"""The examples of docs/SEMANTICS.md do what stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio.testing

from tests.docs.shell import parse, run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "SEMANTICS.md"


def examples() -> list[tuple[str, str, str]]:
    """Title, options and text of each `console` block."""
    found = []
    title = ""
    parts = re.compile(r"^###? ([^\n]*)$|^```console([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    for heading, options, block in parts.findall(PAGE.read_text()):
        title = heading or title
        if block:
            found.append((title, options.strip(), block))
    return found


@pytest.mark.parametrize(("options", "block"), [row[1:] for row in examples()], ids=[row[0] for row in examples()])
async def test_an_example_does_what_stands_there(
    options: str, block: str, autojump_clock: trio.testing.MockClock
) -> None:
    assert options in ("", "close=local")
    await run(block, close_remote=options != "close=local")


def test_there_are_examples_and_each_shows_something() -> None:
    assert len(examples()) >= 12
    for title, _, block in examples():
        assert any(step.wanted for step in parse(block)), title


async def test_an_example_that_is_wrong_is_found(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(AssertionError, match=r"b\$ cat f\nprinted \['one'\], written is \['two'\]"):
        await run("a$ echo one > f\nb$ cat f\ntwo\n")
    with pytest.raises(AssertionError, match="ENOENT"):
        await run("a$ cat f\n")
