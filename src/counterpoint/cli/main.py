"""``counterpoint``: the command's front door, its exit codes and its one line for an error.

Nothing slow is imported before a subcommand needs it, so that ``--help`` answers at once.

Not here: what the subcommands do (``train``, ``doctor``, ``quickstart.run``).
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from contextlib import nullcontext
from difflib import get_close_matches

from counterpoint.cli.completion import MODULES
from counterpoint.console.manners import complain, importing, quiet_libraries, shown
from counterpoint.data.bounds import panics_caught
from counterpoint.errors import ConfigError, CounterpointError
from counterpoint.floors import check_floors
from counterpoint.invocation import NAME, command
from counterpoint.language import Language, language_named, speaking
from counterpoint.wrap import help_width, refold

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

WHILE_RUNNING = ("CP515",)
"""Codes of what went wrong on the way, and not in what was asked for."""

HELP = """\
usage: counterpoint COMMAND ...

Train language models on preference pairs: CPO, SimPO and their relatives.

commands:
  train [CONFIG.yaml] [--option value ...]
                 train a model; counterpoint train --help lists the options
  doctor [CONFIG.yaml] [--option value ...] [--json]
                 say what is wrong with a run before it begins; options as for train
  doctor --explain CODE
                 what a code means, why it hurts, and what to do
  plan [CONFIG.yaml] [--memory 24GiB] [--ranks N] [--option value ...] [--json]
                 say what a run needs in memory, and how to cut its steps to fit
  sweep [CONFIG.yaml] --over NAME=VALUES ... [--metric METRIC] [--option value ...]
                 train a run for each of several settings, and name the best; options as for train
  smoke [CONFIG.yaml] [--real N] [--option value ...] [--json]
                 try the whole run in miniature, on a tiny twin of the model; options as for train
  evaluate MODEL --dataset FILE_OR_HUB ... [--base BASE] [--generate N] [--json]
                 say how often a model prefers the chosen, by how much, and what it writes
  tokens [CONFIG.yaml] [--row N ...] [--option value ...]
                 show rows as they are trained: tokens, boundary, cuts, what carries loss
  init --preset NAME --model M --dataset D [--out run.yaml]
                 write a run's file from a published setting; --list shows them
  init --from FILE [--out run.yaml]
                 or from a script or file of TRL, ms-swift and others
  sample MODEL ... --prompts FILE -k 8 --out CANDIDATES.jsonl [--option value ...]
                 draw candidates: several texts to each prompt, from one model or several
  chat MODEL [--base BASE] [--out PAIRS.jsonl]
                 talk with a model, or with two at once, and say which answer is better
  score CANDIDATES.jsonl ... --out SCORED.jsonl --with SCORER ... [--option value ...]
                 score candidates: metrics, reward models, or programs of your own
  pairs SCORED ... --out PAIRS.jsonl [--option value ...]
                 make preference pairs of scored candidates
  trace PAIRS.jsonl ROW [--json]
                 say which candidates a pair came from, their scores, and how they were made
  loop LOOP.yaml [--out FOLDER] [--dry_run]
                 rounds of sample, score, pairs, train and evaluate, each from the model before
  diff BEFORE AFTER [--all] [--json]
                 say how two saved models or adapters differ
  consolidate RUN_OR_CHECKPOINT [--to FOLDER]
                 make one whole model of a checkpoint that ranks have written in parts
  merge ADAPTER --out FOLDER [--dtype float32]
                 make one model of an adapter and its base
  replay FILE [--model M]
                 do a step that was not finite again, and say what broke first
  report RUN [--out FILE]
                 write a run's report: one HTML file that opens offline
  compare RUN RUN ... [--out FILE]
                 write what differs between runs, and their curves side by side
  watch RUN [--port N]
                 serve a run's report on this machine while training goes on
  watch FOLDER_OF_RUNS
                 show where each of several runs is, and the time left
  quickstart [--output_dir DIR] [--seed N] [--encoder_decoder | --vision]
                 train a tiny model in about a minute: no network, no GPU
  completion bash|zsh|fish
                 write a script that lets a shell complete commands and options

examples:
  counterpoint quickstart
  counterpoint train --model Qwen/Qwen2.5-0.5B --dataset pairs.jsonl --loss_type simpo \\
      --beta 2.0 --gamma_beta_ratio 0.5 --output_dir runs/first

options:
  -h, --help     this text
  --version      the versions of Counterpoint and of what it computes with
  --debug        show the stack trace of an error and what the libraries say
                 (or set COUNTERPOINT_DEBUG=1)
  --language zh  speak Chinese in the doctor, errors, reports and the quickstart; en for English
                 (or set COUNTERPOINT_LANGUAGE; else the locale decides)

exit codes:
  0    done
  1    it failed while running: disk, memory, network, or a bug
  2    it cannot be done as asked, or a run had to stop (CP4xx, CP505); the line on stderr starts
       with a code, see docs/errors.md
  130  interrupted with Ctrl-C; train has saved a checkpoint after its step, unless save_strategy
       is no
  143  the same, ended with SIGTERM
  (doctor: 0 nothing found, 1 warnings, 2 errors; smoke: 1 a check failed;
  plan: 0 it fits, 1 it does not; diff: 1 the two are the same;
  replay: 1 everything is finite this time)
"""

# Words that transformers' own option of the same name takes; alone, --debug is the command's.
_DEBUG_WORDS = ("underflow_overflow", "tpu_metrics_debug")


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the words after ``counterpoint``; None takes those of the process.

    Returns:
        The exit code: 0 done, 1 failed, 2 cannot be done as asked, 130 interrupted.
    """
    words, debug = _take_debug(list(sys.argv[1:] if argv is None else argv))
    try:
        words, language = _take_language(words)
    except CounterpointError as error:
        complain(str(error))
        return USAGE
    with speaking(language):
        return _run(words, debug)


def _run(words: list[str], debug: bool) -> int:
    try:
        with nullcontext() if debug else quiet_libraries(), panics_caught():
            code = _dispatch(words)
            sys.stdout.flush()
            return code
    except KeyboardInterrupt as error:
        _show_trace(debug)
        complain(f"interrupted. {error}")
        return getattr(error, "exit_code", INTERRUPTED)
    except CounterpointError as error:
        _show_trace(debug)
        complain(_in_words(error))
        return FAILED if error.code in WHILE_RUNNING else USAGE
    except BrokenPipeError:
        # The reader of our output went away, as head does; there is nobody left to tell.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until exit
        return FAILED
    except Exception as error:
        _show_trace(debug)
        complain(_explain(error, debug))
        return FAILED


def _dispatch(words: list[str]) -> int:
    if not words:
        sys.stderr.write(_help())
        return USAGE
    first, *rest = words
    if first in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        return DONE
    if first == "--version":
        sys.stdout.write(_versions())
        return DONE
    commands = ("train", *MODULES)
    if first not in commands:
        near = get_close_matches(first, commands, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(commands)}."
        raise ConfigError("CP101", f"{first} is no command; {hint} See counterpoint --help.")
    check_floors()
    return _train(rest) if first == "train" else _module(first, rest)


def _help() -> str:
    here, text = command(), HELP
    if here != NAME:
        text += f"\n{NAME} alone is not on your PATH; here it is called\n  {here}\n"
    return refold(text, help_width(None))


def _versions() -> str:
    """Counterpoint's own version on the first line, where scripts look; what matters below it."""
    from counterpoint.runlog import versions

    found = versions()
    first = f"counterpoint {found.pop('counterpoint')}"
    width = max(len(name) for name in found)
    return "\n".join([first, *(f"  {name:<{width}}  {text}" for name, text in found.items()), ""])


def _train(words: list[str]) -> int:
    if any(word in ("-h", "--help") for word in words):
        from counterpoint.options.help import train_help

        sys.stdout.write(train_help())
        return DONE
    # What needs no answer from a library is answered before anything slow is imported.
    if not words:
        from counterpoint.options.run_options import RunOptions

        RunOptions()
    elif not words[0].startswith("-"):
        from counterpoint.options.yaml_file import read_config

        read_config(words[0])
    with importing():
        from counterpoint.options.settings import read_request

    request = read_request(words)
    with importing():
        from counterpoint.cli.train import train

    train(request)
    return DONE


def _module(name: str, words: list[str]) -> int:
    """A command that is a module: its ``name(words)`` does it, its ``COMMAND`` explains it."""
    with importing():
        module = importlib.import_module(f"counterpoint.cli.{name}")
    if any(word in ("-h", "--help") for word in words):
        sys.stdout.write(module.COMMAND.help())
        return DONE
    return getattr(module, name)(words) or DONE


def _take_debug(words: list[str]) -> tuple[list[str], bool]:
    asked = os.environ.get("COUNTERPOINT_DEBUG", "0") not in ("", "0")
    kept = []
    for number, word in enumerate(words):
        follows = words[number + 1] if number + 1 < len(words) else ""
        if word == "--debug" and follows not in _DEBUG_WORDS:
            asked = True
        else:
            kept.append(word)
    return kept, asked


def _take_language(words: list[str]) -> tuple[list[str], Language | None]:
    """The words without ``--language WORD``, and the language; None where it was not given."""
    kept, language, rest = [], None, list(words)
    while rest:
        word = rest.pop(0)
        written, equals, text = word.partition("=")
        if written != "--language":
            kept.append(word)
            continue
        if not equals and not rest:
            raise ConfigError("CP103", "--language needs a value, as in --language zh.")
        language = language_named(text if equals else rest.pop(0))
    return kept, language


def _in_words(error: CounterpointError) -> str:
    from counterpoint.doctor.table import error_in_words

    return error_in_words(error.code, error.message)


def _show_trace(debug: bool) -> None:
    if debug:
        sys.stderr.write(shown(traceback.format_exc()))


def _explain(error: Exception, debug: bool) -> str:
    text = f"{type(error).__name__}: {error}"
    if "out of memory" in text.lower() or "can't allocate memory" in text.lower():
        return (
            f"{text} Halve per_device_train_batch_size and double gradient_accumulation_steps: "
            "the gradient stays the same."
        )
    if isinstance(error, OSError):
        return text
    trace = "" if debug else "; --debug shows the trace"
    return f"{text} (a bug or a limit{trace})"
