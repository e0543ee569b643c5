"""The exception tree: every error a user can cause carries a stable code.

A message says what was seen, what was expected and what to do. The code never changes its
meaning, so that it can be searched for; ``CODES`` is the one list of them, and docs/errors.md
is generated from it.

Not here: Python's own errors for mistakes in our code; those stay what they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from counterpoint.visible import visible

CODES: Mapping[str, str] = MappingProxyType(
    {
        # 1: what was asked for
        "CP101": "an option of that name does not exist",
        "CP102": "an option has a value that is not among its choices",
        "CP103": "an option's value is out of its range or of the wrong type",
        "CP104": "two options contradict each other",
        "CP105": "an option of transformers or TRL that would do nothing or harm here",
        "CP106": "a configuration file that cannot be read",
        "CP107": "a required option is missing",
        "CP108": "a metric that no evaluation of the run gives",
        "CP109": "a method or attribute of TRL or transformers that is replaced and never called",
        "CP110": "a replay file that cannot be read",
        "CP111": "a hook that is replaced by a method with other arguments",
        # 2: the data
        "CP201": "a column is missing",
        "CP202": "a field is null, of the wrong type or of an unknown shape",
        "CP203": "a completion is empty or blank",
        "CP204": "a prompt leaves no room for a completion token",
        "CP205": "chosen and rejected are the same",
        "CP206": "chosen and rejected answer different prompts, or none",
        "CP207": "a completion does not end with the assistant's turn",
        "CP208": "conversations without a chat template to render them",
        "CP209": "a data set without a row to train on",
        "CP210": "a data file that cannot be read",
        "CP211": "a data set that cannot be found or has no such split",
        "CP212": "a weight or margin that is not a usable number",
        "CP213": "a chat template that fails on a row",
        "CP214": "a completion without a token that a prompt token predicts",
        "CP215": "a candidate's score that is not a usable number",
        "CP216": "a row too large to be one",
        "CP217": "a chat template that does not come to an end",
        "CP218": "a data set that reaches outside its folder",
        "CP219": "images, audio or video that a text model cannot see",
        "CP221": "an assistant's turn that cannot be continued",
        "CP222": "a row that this machine could not prepare, through no fault of the row",
        "CP223": "a cell of a CSV file that is unlike the rest of its column",
        "CP224": "an array that numpy wrote into a CSV file as text",
        "CP225": "a stream with fewer shards than it is to be read in lanes",
        "CP226": "a chat template that leaves out part of a completion",
        "CP227": "a language that nobody gave, or that the tokenizer does not have",
        "CP228": "pictures and their marks that do not agree, or a picture in a completion",
        "CP229": "a picture that lies where none may be read",
        "CP230": "a picture that cannot be read",
        "CP231": "a picture that is too large",
        "CP232": "a picture that has changed since its row was prepared",
        "CP233": "a list of rejected completions that cannot be used",
        "CP234": "several chosen completions in one row",
        "CP235": "a conversation that fills the model's positions",
        "CP236": "a row without the gold completion that the loss reads",
        "CP237": "a column that a data set is said to have, and has not",
        "CP238": "rows of which no share can be held out by prompt",
        "CP239": "a row that prefers none of its completions",
        "CP240": "a streamed data set, of which a reference cannot be asked for every pair first",
        "CP243": "a scorer that gives a candidate no usable number",
        "CP244": "a human's choice of a candidate that there is not",
        "CP247": "a completion of which no token is left that is trained",
        "CP248": "a completion whose turns cannot be told apart",
        "CP249": "candidates that an endpoint did not give",
        # 3: model and tokenizer
        "CP301": "a model or tokenizer that cannot be loaded",
        "CP302": "a tokenizer without an end-of-sequence token",
        "CP303": "a token id beyond the model's embedding",
        "CP304": "a model whose output head cannot be found",
        "CP305": "nothing to train",
        "CP306": "a kind of model that is not supported",
        "CP307": "an adapter that does not fit the model",
        "CP308": "a weight that is not finite",
        "CP309": "a model of which no tiny twin can be made",
        "CP310": "weights that are pickled",
        "CP311": "a model that brings code of its own",
        "CP312": "a tokenizer that gives up on a text",
        "CP313": "experts whose choice cannot be counted",
        "CP314": "an adapter that activation checkpointing leaves out",
        "CP315": "a configuration that asks for more than any model has, or than its files hold",
        "CP316": "quantised weights without an adapter that trains on them",
        "CP317": "an encoder-decoder of which it is not known what its decoder begins with",
        "CP319": "quantised weights on which a step would not be a function of its pairs",
        "CP331": "a processor that makes more or less of pictures than the model or the data have",
        "CP334": "a step about pictures that is done again on a model that sees them otherwise",
        "CP336": "features of pictures that should be kept, of a tower that trains",
        "CP337": "pairs that were not compared with the initial policy while it was there",
        "CP338": "a reference that cannot read what the run's model reads",
        "CP339": "a reference that gives a completion a log-probability that is not finite",
        "CP340": "an adapter that has changed since a new one was put on top of it",
        "CP341": "a model to which no row for a new token can be added",
        "CP342": "a tokenizer that does not add to the model's own",
        "CP344": "a model that transformers' continuous batching does not write with",
        "CP346": "a reward model whose labels give no one number",
        "CP347": "a scorer of one's own that fails",
        "CP348": "a judge whose verdicts cannot be used",
        # 4: while training
        "CP401": "a loss or gradient that is not finite",
        "CP402": "a run that was stopped by an alarm",
        "CP403": "ranks that no longer agree",
        "CP404": "another process of the run that is gone",
        "CP405": "weights or optimizer state that are not finite",
        # 5: the machine and its packages
        "CP501": "an output folder that cannot be written",
        "CP502": "a package that is missing or too old",
        "CP503": "a way of launching that would change the result",
        "CP504": "a folder that already holds a different run",
        "CP505": "memory that ran out where cutting the step again does not help",
        "CP506": "an output file that is there already",
        "CP507": "a folder that holds no run",
        "CP508": "a port that cannot be listened on",
        "CP511": "a folder that is no checkpoint, or one that was not written to its end",
        "CP512": "a checkpoint with files that are missing, cut short or changed",
        "CP513": "a checkpoint of a different experiment",
        "CP514": "a checkpoint that does not fit: of the model alone, of another model or format",
        "CP515": "a checkpoint that could not be saved",
        "CP516": "a folder that another run writes in",
        "CP517": "a state that cannot be saved without pickle",
        "CP518": "something beside the weights that cannot be saved",
        "CP519": "an adapter whose base model has changed since it was trained",
        "CP520": "a folder in which another run began while this one was loading",
        "CP521": "a checkpoint's folder with files that its manifest does not list",
        "CP522": "memory that ran out, and not in a micro-batch",
        "CP523": "an adapter that is not saved as it lies in the model, in a run in shards",
        "CP524": "a checkpoint whose shards do not make up its tensors",
        "CP525": "a folder that ranks do not share, so that no rank sees the whole checkpoint",
        "CP526": "what ranks had of their own, which another number of them cannot take over",
        "CP527": "a folder that holds another sweep, or something else",
        "CP528": "a sweep of which no run gave its metric",
        "CP529": "an endpoint that cannot be used",
        "CP530": "a folder with several GGUF files, of which none is named",
        "CP531": "a GGUF file that is one part of a model",
        "CP532": "a GGUF file that is broken or cut short",
        "CP533": "a GGUF file of an architecture that transformers does not read",
        "CP534": "a file of candidates that were sampled or scored otherwise",
        "CP535": "a file of candidates that another process writes to",
        "CP537": "a loop's file with several mistakes",
        "CP538": "a folder that holds no loop, or a file of a loop that was changed by hand",
        "CP539": "a stage of a loop that failed",
    }
)


class CounterpointError(Exception):
    """An error with a stable code.

    Args:
        code: a key of ``CODES``, for example ``"CP204"``.
        message: what was seen, what was expected, what to do.
    """

    def __init__(self, code: str, message: str) -> None:
        """Keep code and message apart as well as joined."""
        if code not in CODES:
            msg = f"{code} is not in counterpoint.errors.CODES"
            raise KeyError(msg)
        message = visible(message)  # it quotes names and data
        super().__init__(f"{code} {message}")
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type[CounterpointError], tuple[str, str]]:
        """Survive the trip from a worker process."""
        return type(self), (self.code, self.message)


class ConfigError(CounterpointError, ValueError):
    """CP1xx: what was asked for cannot be done."""


class DataError(CounterpointError, ValueError):
    """CP2xx: rows that are not preference pairs, or files that are not data."""


class ModelError(CounterpointError, ValueError):
    """CP3xx: a model or tokenizer that cannot be trained as given."""


class TrainingError(CounterpointError, RuntimeError):
    """CP4xx: a run that cannot continue."""


class NonFiniteError(TrainingError, ArithmeticError):
    """CP401: a step that must not reach the weights."""


class SetupError(CounterpointError, RuntimeError):
    """CP5xx: the machine, its folders or its packages."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def kind_and_line(error: BaseException) -> str:
    """An error's kind, and the first line of what it says if it says anything."""
    kind = type(error).__name__
    return f"{kind}: {first_line(error)}" if str(error).strip() else kind
