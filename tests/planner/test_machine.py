"""Sizes are read and shown as people write them; a container's limit is a limit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from counterpoint import ConfigError
from counterpoint.planner import machine
from counterpoint.planner.machine import available_memory, read_bytes, show_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", 24 * 2**30),
        ("80 GB", 80 * 10**9),
        ("1.5gib", 3 * 2**29),
        ("512MiB", 2**29),
        ("100B", 100),
    ],
)
def test_a_size_is_a_number_with_its_unit(text, size):
    assert read_bytes(text) == size


@pytest.mark.parametrize("text", ["24", "GiB", "-1GiB", "0GiB", "24 apples", "1e3GiB", ""])
def test_anything_else_is_refused_and_named(text):
    with pytest.raises(ConfigError, match="CP103 memory="):
        read_bytes(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(24 * 2**30, "24 GiB"), (3 * 2**19, "1.5 MiB"), (2**10, "1 KiB"), (2**50, "1,024 TiB")],
)
def test_a_size_is_shown_in_three_digits(size, text):
    assert show_bytes(size) == text


def test_a_container_has_what_its_limit_leaves(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    whole = available_memory(torch.device("cpu"))
    assert whole > 0
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 100\n")
    (tmp_path / "memory.max").write_text("1000\n")
    assert available_memory(torch.device("cpu")) == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(torch.device("cpu")) > 400
