"""Every block of commands on README and quick start has somebody who runs it."""

from pathlib import Path

import pytest

from tests.command_blocks import (
    COMMANDS,
    NOT_RUN,
    PAGES,
    ROOT,
    RUN_BY,
    Block,
    Tier,
    blocks_of,
    clean_copy,
    command_blocks,
    fences,
    typed,
)

pytestmark = pytest.mark.unit


def runners(block: Block) -> list[str]:
    return [begin for begin in (*RUN_BY, *NOT_RUN) if block.title.startswith(begin)]


@pytest.mark.parametrize("block", command_blocks(), ids=lambda block: block.title)
def test_a_block_is_run_by_a_test_or_has_a_reason(block: Block) -> None:
    assert len(runners(block)) == 1, f"name it once in tests/command_blocks.py: {block.title}"


def test_who_is_named_runs_a_block_that_is_there() -> None:
    titles = [block.title for block in command_blocks()]
    named = [*RUN_BY, *NOT_RUN]
    assert [begin for begin in named if sum(t.startswith(begin) for t in titles) != 1] == []
    for tier in Tier:
        assert f"blocks_of(Tier.{tier.name})" in (ROOT / tier).read_text()


@pytest.mark.parametrize("page", PAGES)
def test_no_block_hides_its_commands(page: str) -> None:
    """A fence without a language is not looked at by anybody."""
    found = {block.language for block in fences(page)}
    assert found <= {*COMMANDS, "yaml"}
    assert found & set(COMMANDS)


def test_commands_behind_a_prompt_are_found() -> None:
    assert Block("x", "console", "$ one\nsaid\n$ two\n").script == "one\ntwo"
    assert runners(Block("README.md", "bash", "rm -rf /\n")) == []


def test_what_needs_neither_cluster_nor_training(tmp_path: Path) -> None:
    where = clean_copy(tmp_path)
    for block in blocks_of(Tier.UNIT):
        said = typed(block, where)
        assert said.count(" is valid") >= 2 * len(list((where / "examples").glob("*.yaml")))


def test_a_block_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no-such-command"):
        typed(Block("x", "bash", "no-such-command\ntrue\n"), tmp_path)
