"""What ``counterpoint evaluate`` takes: its own flags, and those of ``train`` that it reads.

Where the model lies in a run's folder, the options of that run's objective and of how it read a row
are taken over, so that the reward is the one that was trained; of an adapter also how the run held
the weights under it.

Not here: evaluating (``cli.evaluate``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import TYPE_CHECKING, Any

from counterpoint.constraints import KINDS
from counterpoint.data.options import OF_A_ROW, OF_THE_MACHINE
from counterpoint.errors import ConfigError
from counterpoint.evaluation.references import BLEU_TOKENIZERS, METRICS
from counterpoint.log import logger
from counterpoint.objectives import DEFAULT_LOSS, INITIAL, LOSSES, OBJECTIVE_OPTIONS
from counterpoint.options.coerce import coerce
from counterpoint.options.declared import option
from counterpoint.options.given import Scalar, Setting
from counterpoint.options.limits import refuse_below, refuse_drawing
from counterpoint.options.run_weights import (
    QUANTISING,
    SAYS_QUANTISED,
    began_from,
    holding_of,
    initial_policy_of,
    run_of,
)
from counterpoint.runlog import read_run
from counterpoint.strict import strict_json

if TYPE_CHECKING:
    from counterpoint.options.settings import Request

OBJECTIVE = (
    *OBJECTIVE_OPTIONS,
    "router_aux_loss_coef",
)
READING = tuple(OF_A_ROW.values())
"""How a row is read, so that a model is evaluated on rows read as those that it was trained on."""

OF_TRAIN = (
    *OBJECTIVE,
    *READING,
    *OF_THE_MACHINE.values(),
    "revision",
    "tokenizer",
    "chat_template",
    "dtype",
    "attn_implementation",
    "trust_remote_code",
    "allow_pickle",
    "load_in_4bit",
    "load_in_8bit",
    "model_init_kwargs",
    "hub_token",
    "per_device_eval_batch_size",
    "max_micro_batch_tokens",
    "layout",
    "bf16",
    "fp16",
    "use_cpu",
    "ddp_backend",
)
"""Options of ``counterpoint train`` that mean the same here."""

ENGINES = ("transformers", "continuous")
"""What writes texts: padded batches, or continuous batches."""

OF_WRITING = (
    *("temperature", "max_new_tokens", "num_beams", "metrics", "bleu_tokenizer"),
    *("with_", "scorers", "engine"),
)
"""Flags of the command that only say how, or whereby, texts are written and scored."""

_AS_IN_TRAIN = {"dataset": "eval_dataset", "split": "eval_dataset_split"}
_FIXED = {"gradient_checkpointing": False, "disable_tqdm": True, "report_to": "none"}


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """The command's own flags; every field's help is its meaning."""

    base: str | None = option(
        None,
        "Model to compare with, as MODEL: a table of before and after, with intervals "
        "of the difference on the same pairs.",
    )
    blank_pictures: bool = option(
        False,
        "Judge each pair once more with blank pictures of the same size: how far its margin goes "
        "by its pictures, and which rows least. Such as hardly go by them are CW235.",
    )
    generate: int = option(
        0,
        "Let the model write to at most so many prompts of each set, spread evenly; "
        "the column reference, or else the chosen completion, is what they are compared with.",
    )
    prompts: list[str] = option(
        [],
        "Files or a hub id with prompts to write to: rows with prompt (text or "
        "messages) and, where there is one, reference.",
    )
    max_new_tokens: int = option(128, "Most tokens written to a prompt, >= 1.")
    num_beams: int = option(
        1, "Beams with which texts are written, >= 1; 1: greedily. Sampled texts have none."
    )
    temperature: float = option(
        0.0, "Above 0: sample a second text for each prompt at this temperature."
    )
    top_p: float = option(1.0, "Share of probability to sample from, in (0, 1].")
    engine: str = option(
        "transformers",
        "What writes texts. transformers: padded batches; continuous: transformers' continuous "
        "batching, which draws sampled texts by chances of their own.",
        ENGINES,
    )
    metrics: list[str] = option(
        [],
        "Scores against references beside the exact match. Not given: bleu and "
        "chrf, where sacrebleu is installed.",
        (*METRICS, "none"),
    )
    with_: list[str] = option(
        [],
        "Scorers of the texts written, as for counterpoint score; with base also the share of "
        "prompts that the model wins.",
    )
    scorers: str | None = option(None, "YAML file of scorers, as for counterpoint score.")
    bleu_tokenizer: str = option(
        "13a", "How BLEU finds words: 13a for most languages, zh for Chinese.", BLEU_TOKENIZERS
    )
    resamples: int = option(2000, "Draws of the bootstrap that makes the intervals, >= 1.")
    seed: int = option(0, "Of the bootstrap and of sampled texts, >= 0.")
    json: bool = option(False, "Everything as a JSON object instead of tables.")
    out: str | None = option(None, "Folder for evaluation.json and the texts, completions.jsonl.")
    overwrite: bool = option(False, "Replace these files where they are there already.")

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        refuse_below(self, generate=0, seed=0, max_new_tokens=1, num_beams=1, resamples=1)
        refuse_drawing(self.temperature, self.top_p)
        if "none" in self.metrics and len(self.metrics) > 1:
            raise ConfigError("CP104", "metrics: none contradicts the others; leave one out.")
        self._check_writing()

    @property
    def writes(self) -> bool:
        """Whether texts are to be written."""
        return bool(self.generate or self.prompts)

    def _check_writing(self) -> None:
        if self.top_p != 1 and not self.temperature:
            raise ConfigError(
                "CP104", f"top_p={self.top_p} would do nothing without a temperature above 0."
            )
        if self.engine != "transformers" and self.num_beams > 1:
            raise ConfigError(
                "CP104",
                f"num_beams={self.num_beams} would do nothing with engine={self.engine}, which has "
                "no beams. Leave one of them out.",
            )
        idle = [name for name in OF_WRITING if getattr(self, name) != _default_of(name)]
        if idle and not self.writes:
            names = [name.removesuffix("_") for name in idle]
            raise ConfigError(
                "CP104",
                f"{' and '.join(names)} would do nothing: no text is written without --generate N "
                "or --prompts FILE.",
            )


def _default_of(name: str) -> Any:
    made = EvaluateOptions.__dataclass_fields__[name]
    return made.default if made.default_factory is MISSING else made.default_factory()


def read_evaluation(
    source: str,
    words: Sequence[str],
    output_dir: str,
    *,
    base: str | None = None,
    command: str = "evaluate",
    takes: Sequence[str] = OF_TRAIN,
) -> Request:
    """The options of an evaluation as those of a run that only evaluates.

    Args:
        source: the model's hub id or folder.
        words: the command line without the model and the command's own flags.
        output_dir: a folder that nothing is written to.
        base: the hub id or folder of another model that is to be judged by the same objective. It
            is loaded as its own run held it; as the model's run did, if that began with it.
        command: that is called so, for messages.
        takes: options of ``train`` that mean something to it.

    Raises:
        ConfigError: CP1xx, also for options of ``train`` that would do nothing here.
    """
    # slow to import, as the flags above are not
    from counterpoint.options.settings import read_values, request_of
    from counterpoint.options.table import reads_as

    _refuse_stray(words, command)
    given = read_values([_as_in_train(word) for word in words])
    idle = [name for name in given if name not in (*takes, *_AS_IN_TRAIN.values())]
    if idle:
        raise ConfigError(
            "CP101",
            f"--{idle[0]} is no option of counterpoint {command}, where it would do nothing; "
            f"counterpoint {command} --help lists those that it takes.",
        )
    inherited = dict(of_run(source))
    if "loss_type" in given:
        inherited = {name: value for name, value in inherited.items() if name in READING}
    _name_the_reference(source, given, inherited)
    of, held = _held(source, base)
    if any(name in given for name in QUANTISING):  # the two contradict each other
        held = {name: value for name, value in held.items() if name not in SAYS_QUANTISED}
    inherited = {**inherited, **held}
    taken = {
        name: coerce(Setting(name, _written(value), f"--{name}"), *reads_as(name))
        for name, value in inherited.items()
        if name not in given
    }
    said = [name for name in taken if name in held or (base is None and name in takes)]
    if said:
        logger().info("those of the run of %s: %s", of, ", ".join(said))
    if base is not None:
        given.pop("revision", None)  # a revision is a model's own
    # a data set to train on is wanted of every run; it is not read
    wanted = {
        "model": source if base is None else base,
        "dataset": [source],
        "output_dir": output_dir,
    }
    return request_of({**wanted, **_FIXED, **taken, **given})


def _name_the_reference(source: str, given: Mapping[str, Any], inherited: dict[str, Any]) -> None:
    """What a run began with is a model with a name by now, where it has one.

    Raises:
        ConfigError: CP107 where it has none.
    """
    loss = LOSSES.get(str(given.get("loss_type", inherited.get("loss_type", DEFAULT_LOSS))))
    wanted = str(given.get("reference", inherited.get("reference", INITIAL)))
    if loss is None or not loss.needs_reference or wanted != INITIAL:
        return
    beside_a_run = "loss_type" in given and run_of(source) is not None
    began = None if beside_a_run else initial_policy_of(source)
    if not began:
        why = f"what {source} began with has no name here"
        raise ConfigError(
            "CP107",
            f"reference is missing: {loss.method} compares with a reference, and "
            f"{'beside --loss_type none is taken from the run' if beside_a_run else why}. "
            "Give it as --reference MODEL.",
        )
    inherited["reference"] = began


def of_run(source: str) -> Mapping[str, Any]:
    """The options of objective and reading of the run that a model is of; empty without a run.

    Args:
        source: a folder with ``run.json``, or a checkpoint in one.

    Raises:
        SetupError: CP507 for a ``run.json`` that cannot be read.
    """
    place = run_of(source)
    if place is None:
        return {}
    options = read_run(place, ()).facts.get("options", {})
    wanted = {name: options.get(name) for name in OBJECTIVE}
    kinds = [KINDS.get(str(one.get("kind"))) for one in options.get("constraints") or ()]
    if any(kind is not None and kind.nll_weight for kind in kinds):
        wanted["cpo_alpha"] = 0.0  # its NLL was bounded, and had no fixed weight
    # a null says how a row is read, where a run has written one: no own default does
    read = {name: options[name] for name in READING if name in options}
    return {name: value for name, value in wanted.items() if value is not None} | read


def _held(source: str, base: str | None) -> tuple[str, dict[str, Any]]:
    """How the weights under an adapter, or those that it lay on at the start, are loaded; by whom.

    A base that the model's run did not begin with is loaded as its files have it.
    """
    if base is not None and run_of(base) is not None:
        return base, holding_of(base)
    return source, holding_of(source) if base is None or began_from(source, base) else {}


def _written(value: Any) -> Scalar:
    if isinstance(value, Mapping):
        return Scalar(strict_json(value))
    return Scalar("null" if value is None else str(value))


def _as_in_train(word: str) -> str:
    written, equals, text = word.partition("=")
    name = written.removeprefix("--").replace("-", "_") if written.startswith("--") else ""
    return f"--{_AS_IN_TRAIN[name]}{equals}{text}" if name in _AS_IN_TRAIN else word


def _refuse_stray(words: Sequence[str], command: str) -> None:
    if words and not words[0].startswith("--"):
        raise ConfigError(
            "CP101",
            f"{words[0]!r} belongs to no flag; see counterpoint {command} --help.",
        )
