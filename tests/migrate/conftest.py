"""The command and its folder, as the tests of ``cli`` have them."""

from tests.cli.conftest import command, pattern, workshop

__all__ = ["command", "pattern", "workshop"]
