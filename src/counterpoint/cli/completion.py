"""``counterpoint completion SHELL``: a script that lets a shell finish the command's words.

The script holds every command, flag and choice as plain words, so that pressing Tab never waits
for Python. What is no flag is completed as a file name, for that is what it is.

Not here: which flags there are (``options.table``, ``COMMAND`` of each module).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from counterpoint.console.manners import put
from counterpoint.errors import ConfigError
from counterpoint.options.command import Command
from counterpoint.options.declared import Option

SHELLS = ("bash", "zsh", "fish")

USAGE = """\
usage: counterpoint completion bash|zsh|fish

Writes a script that completes commands, options and their choices when Tab is
pressed. Make a new one after an update.

  bash   counterpoint completion bash > ~/.local/share/bash-completion/completions/counterpoint
  zsh    counterpoint completion zsh > ~/.zfunc/_counterpoint   (a folder of $fpath)
  fish   counterpoint completion fish > ~/.config/fish/completions/counterpoint.fish
"""

LIKE_TRAIN = ("train", "doctor", "plan", "smoke", "tokens", "sweep")
"""Commands that take the options of ``train``."""

MODULES = (
    *("doctor", "plan", "smoke", "evaluate", "tokens", "init", "sample", "pairs", "diff"),
    *("replay", "report", "compare", "watch", "quickstart", "completion", "consolidate", "merge"),
    "sweep",
    "chat",
    *("score", "trace"),
    "loop",
)
"""Commands that are a module of ``cli``, which declares them in ``COMMAND``."""


@dataclass(frozen=True, slots=True)
class Words:
    """What may follow a command.

    Args:
        flags: name -> the words that it takes; empty where any value is.
        first: words that may come in place of a file.
    """

    flags: Mapping[str, tuple[str, ...]]
    first: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CompletionOptions:
    """The command takes a shell's name, and no flags."""


COMMAND = Command("completion", USAGE, CompletionOptions)


def completion(words: list[str]) -> None:
    """Write a shell's script on standard output.

    Args:
        words: one of ``SHELLS``.

    Raises:
        ConfigError: CP107 without a shell, CP102 for one that has no script.
    """
    if not words:
        raise ConfigError("CP107", f"name the shell: {', '.join(SHELLS)}.")
    if words[1:] or words[0] not in SHELLS:
        raise ConfigError("CP102", f"{' '.join(words)} should be one of {', '.join(SHELLS)}.")
    put({"bash": _bash, "zsh": _zsh, "fish": _fish}[words[0]](all_words()).rstrip())


def all_words() -> dict[str, Words]:
    """Every command, with what may follow it."""
    from counterpoint.options.evaluate_options import OF_TRAIN
    from counterpoint.options.table import options

    of_train = _words(options())
    found = {}
    for command in sorted({*LIKE_TRAIN, *MODULES}):
        flags = dict(of_train) if command in LIKE_TRAIN else {}
        if command == "evaluate":
            flags = {name: of_train.get(name, ()) for name in (*OF_TRAIN, "dataset", "split")}
        if command in MODULES:
            flags |= _words(importlib.import_module(f"counterpoint.cli.{command}").COMMAND.flags())
        flags["help"] = ()
        found[command] = Words(flags, SHELLS if command == "completion" else ())
    return found


def _words(options: Mapping[str, Option]) -> dict[str, tuple[str, ...]]:
    return {name: _choices(one.choices, one.default) for name, one in options.items()}


def _choices(choices: Iterable[str], default: object) -> tuple[str, ...]:
    """The words a flag takes; a switch may stand alone, so that nothing is asked of it."""
    return () if isinstance(default, bool) else tuple(choices)


def _flags(words: Words) -> str:
    return " ".join(f"--{name}" for name in sorted(words.flags))


def _bash(commands: Mapping[str, Words]) -> str:
    cases, choices = [], []
    for command, words in commands.items():
        cases.append(f'    {command}) flags="{_flags(words)}" first="{" ".join(words.first)}" ;;')
        choices += [
            f'    "{command} --{name}") COMPREPLY=($(compgen -W "{" ".join(taken)}" -- "$word"))'
            "; return ;;"
            for name, taken in words.flags.items()
            if taken
        ]
    return "\n".join(
        [
            "# Completion of counterpoint for bash. Written by: counterpoint completion bash",
            "_counterpoint() {",
            '  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"',
            '  local command="${COMP_WORDS[1]}" flags="" first=""',
            '  if [ "$COMP_CWORD" -eq 1 ]; then',
            f'    COMPREPLY=($(compgen -W "{" ".join(commands)} --help --version" -- "$word"))',
            "    return",
            "  fi",
            '  case "$command $before" in',
            *choices,
            "  esac",
            '  case "$command" in',
            *cases,
            "    *) return ;;",
            "  esac",
            '  case "$word" in',
            '    -*) COMPREPLY=($(compgen -W "$flags" -- "$word")) ;;',
            '    *) COMPREPLY=($(compgen -W "$first" -- "$word")) ;;',
            "  esac",
            "}",
            "complete -o bashdefault -o default -F _counterpoint counterpoint",
            "",
        ]
    )


def _zsh(commands: Mapping[str, Words]) -> str:
    cases, choices = [], []
    for command, words in commands.items():
        cases.append(f"    {command}) flags=({_flags(words)}) first=({' '.join(words.first)}) ;;")
        choices += [
            f'    "{command} --{name}") compadd -- {" ".join(taken)}; return ;;'
            for name, taken in words.flags.items()
            if taken
        ]
    return "\n".join(
        [
            "#compdef counterpoint",
            "# Completion of counterpoint for zsh. Written by: counterpoint completion zsh",
            "_counterpoint() {",
            "  local -a flags first",
            '  local command="$words[2]" before="$words[CURRENT-1]"',
            "  if (( CURRENT == 2 )); then",
            f"    compadd -- {' '.join(commands)} --help --version",
            "    return",
            "  fi",
            '  case "$command $before" in',
            *choices,
            "  esac",
            '  case "$command" in',
            *cases,
            "    *) return 1 ;;",
            "  esac",
            '  if [[ "$words[CURRENT]" == -* ]]; then',
            "    compadd -- $flags",
            "  elif (( $#first )); then",
            "    compadd -- $first",
            "  else",
            "    _files",
            "  fi",
            "}",
            '_counterpoint "$@"',
            "",
        ]
    )


def _fish(commands: Mapping[str, Words]) -> str:
    lines = ["# Completion of counterpoint for fish. Written by: counterpoint completion fish"]
    none = "__fish_use_subcommand"
    lines += [f"complete -c counterpoint -f -n {none} -a {command}" for command in commands]
    lines += [f"complete -c counterpoint -f -n {none} -l {flag}" for flag in ("help", "version")]
    for command, words in commands.items():
        when = f'-n "__fish_seen_subcommand_from {command}"'
        if words.first:
            lines.append(f'complete -c counterpoint {when} -f -a "{" ".join(words.first)}"')
        for name, taken in sorted(words.flags.items()):
            values = f' -x -a "{" ".join(taken)}"' if taken else ""
            lines.append(f"complete -c counterpoint {when} -l {name}{values}")
    return "\n".join([*lines, ""])
