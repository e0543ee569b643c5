"""What a Python script passes to TRL's classes, read from its text.

The script is parsed, never run or imported. A value counts if it is written out, or is a name
that is given a written-out value once; everything else is known only when the script runs, and is
said to be so.

Not here: what the options mean (``of_trl``).
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from counterpoint.errors import ConfigError
from counterpoint.migrate.data_sets import Source, source_of
from counterpoint.migrate.draft import as_given
from counterpoint.migrate.of_kto import refuse_kto
from counterpoint.objectives import DEFAULTS_OF_TRL
from counterpoint.options.given import Scalar, Setting

CONFIGS = {f"{trl}Config": loss for trl, loss in DEFAULTS_OF_TRL.items()}
"""Classes of options -> the loss of those that name none."""

TRAINERS = tuple(f"{trl}Trainer" for trl in DEFAULTS_OF_TRL)
_POSITIONS = ("model", "args", "data_collator", "train_dataset", "eval_dataset", "processing_class")
_POSITIONS_OF_DPO = ("model", "ref_model", *_POSITIONS[1:])
_KTO = ("KTOConfig", "KTOTrainer")
_RUN_TIME = "it is known only when the script runs"
_SEQ2SEQ = ("AutoModelForSeq2SeqLM", "ForConditionalGeneration")
"""Ends of the names of classes that load encoder-decoders."""
_OF_TOKENIZER = {"src_lang": "source_lang", "tgt_lang": "target_lang"}
_DTYPES = ("bfloat16", "float16", "float32")
_OF_MODEL = {"torch_dtype": "dtype", "dtype": "dtype", "pretrained_model_name_or_path": "model"}
_OF_LORA = {
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "lora_target_modules",
    "modules_to_save": "lora_modules_to_save",
    "target_parameters": "lora_target_parameters",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
_OBVIOUS_OF_LORA = {
    "task_type": ("CAUSAL_LM", "SEQ_2_SEQ_LM"),  # which follows from the model
    "bias": ("none",),
    "inference_mode": (False,),
}
_DEEPEST = 20


class Script:
    """A script's calls of TRL's classes, as settings.

    Args:
        text: of the script.
        path: of its file.

    Raises:
        ConfigError: CP106 where it is no Python, or does not call such a class once; CP102 where
            it trains with KTO.
    """

    def __init__(self, text: str, path: str) -> None:
        self.name = Path(path).name
        self.left: list[str] = []
        self.sources: dict[str, Source] = {}
        tree = _parsed(text, self.name)
        self._bound = _bound_once(tree)
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        self._loads = [call for call in calls if _called(call) == "load_dataset"]
        config = self._only(calls, tuple(CONFIGS))
        if config is None:
            of_kto = next((call for call in calls if _called(call) in _KTO), None)
            if of_kto is not None:
                raise refuse_kto(f"{self.name} line {of_kto.lineno}: {_called(of_kto)}")
            raise ConfigError(
                "CP106",
                f"{path} calls neither {' nor '.join(CONFIGS)}; if its options come from the "
                "command line, give a file with that command.",
            )
        self.loss_type = CONFIGS[_called(config)]
        self.settings = list(self._keywords(config, ("output_dir",)))
        trainer = self._only(calls, TRAINERS)
        if trainer is not None:
            self._read_trainer(trainer)
        adapter = self._only(calls, ("LoraConfig",))
        if adapter is not None:
            self._read_adapter(adapter)

    def _only(self, calls: list[ast.Call], names: tuple[str, ...]) -> ast.Call | None:
        found = [call for call in calls if _called(call) in names]
        if len(found) > 1:
            lines = ", ".join(str(call.lineno) for call in found)
            raise ConfigError(
                "CP106",
                f"{self.name} calls {_called(found[0])} {len(found)} times (lines {lines}); "
                "keep one in the file.",
            )
        return found[0] if found else None

    def _keywords(self, call: ast.Call, positions: tuple[str, ...]) -> Iterator[Setting]:
        """The arguments of a call that are written out; the others are left."""
        for name, node in self._arguments(call, positions):
            try:
                given = as_given(self._literal(node))
            except ValueError:
                self._leave(name, node, _RUN_TIME)
                continue
            yield Setting(name, given, self._where(name, node))

    def _arguments(
        self, call: ast.Call, positions: tuple[str, ...]
    ) -> Iterator[tuple[str, ast.expr]]:
        for number, node in enumerate(call.args):
            if number < len(positions) and not isinstance(node, ast.Starred):
                yield positions[number], node
            else:
                self._leave(f"argument {number + 1} of {_called(call)}", node, _RUN_TIME)
        for keyword in call.keywords:
            if keyword.arg is None:
                self._leave(f"** of {_called(call)}", keyword.value, _RUN_TIME)
            else:
                yield keyword.arg, keyword.value

    def _read_trainer(self, call: ast.Call) -> None:
        positions = _POSITIONS_OF_DPO if _called(call) == "DPOTrainer" else _POSITIONS
        for name, node in self._arguments(call, positions):
            if name == "model":
                self._read_model(node)
            elif name == "ref_model":
                self._read_reference(node)
            elif name in ("processing_class", "tokenizer"):
                self._read_tokenizer(name, node)
            elif name in ("train_dataset", "eval_dataset"):
                self._read_data(name, node)
            elif name == "peft_config":
                found = self._resolved(node)
                if not isinstance(found, ast.Call) or _called(found) != "LoraConfig":
                    self._leave(name, node, _RUN_TIME)
            elif name != "args":
                self._leave(name, node, "it is an argument of the trainer in Python, not of a file")

    def _read_model(self, node: ast.expr) -> None:
        found = self._resolved(node)
        if isinstance(found, ast.Call) and _called(found) == "from_pretrained":
            for setting in self._keywords(found, ("model",)):
                name = _OF_MODEL.get(setting.name, setting.name)
                self.settings.append(Setting(name, setting.given, setting.where))
            if _loader(found).endswith(_SEQ2SEQ):
                self._say_encoder_decoder(found)
        elif isinstance(found, ast.Constant) and isinstance(found.value, str):
            self.settings.append(
                Setting("model", as_given(found.value), self._where("model", node))
            )
        else:
            self._leave("model", node, f"{_RUN_TIME}; give it with --model")

    def _read_reference(self, node: ast.expr) -> None:
        found = self._resolved(node)
        if isinstance(found, ast.Call) and _called(found) == "from_pretrained" and found.args:
            found = self._resolved(found.args[0])
        if isinstance(found, ast.Constant) and isinstance(found.value, str | None):
            where = self._where("ref_model", node)
            self.settings.append(Setting("ref_model", as_given(found.value), where))
        else:
            self._leave("ref_model", node, f"{_RUN_TIME}; give it with --reference")

    def _say_encoder_decoder(self, load: ast.Call) -> None:
        """TRL asks the model; said here, since a row is then read and limited as TRL does it."""
        if all(setting.name != "is_encoder_decoder" for setting in self.settings):
            where = self._where(_loader(load), load)
            self.settings.append(Setting("is_encoder_decoder", as_given(True), where))

    def _read_tokenizer(self, name: str, node: ast.expr) -> None:
        found = self._resolved(node)
        of_model = next((s.given for s in self.settings if s.name == "model"), None)
        if isinstance(found, ast.Call) and _called(found) == "from_pretrained" and found.args:
            for setting in self._keywords(found, ("tokenizer",)):
                if (language := _OF_TOKENIZER.get(setting.name)) is not None:
                    self.settings.append(Setting(language, setting.given, setting.where))
                elif setting.name != "tokenizer":
                    self.left.append(f"{setting}: the tokenizer's own settings are used.")
                elif setting.given != of_model:
                    self.settings.append(setting)
        else:
            self._leave(name, node, f"{_RUN_TIME}; the model's own tokenizer is used")

    def _read_adapter(self, call: ast.Call) -> None:
        given = {setting.name: setting for setting in self._keywords(call, ("task_type",))}
        for name, usual in _OBVIOUS_OF_LORA.items():
            setting = given.get(name)
            if setting is not None and setting.given in map(as_given, usual):
                given.pop(name)
        for name, setting in given.items():
            if name not in _OF_LORA:
                self.left.append(f"{setting}: there is no such option here.")
            else:
                self.settings.append(Setting(_OF_LORA[name], setting.given, setting.where))
        where = self._where("LoraConfig", call)
        named = {keyword.arg for keyword in call.keywords}
        self.settings += [
            Setting(_OF_LORA[name], Scalar("8"), f"{where}.{name}")  # peft's defaults
            for name in ("r", "lora_alpha")
            if name not in named
        ]
        if "target_modules" not in named:
            self.left.append(
                f"{where}: without target_modules peft adapts the few layers it knows for the "
                "model's family; here every linear layer gets an adapter. Name them in "
                "lora_target_modules to have the same."
            )

    def _read_data(self, name: str, node: ast.expr) -> None:
        source, changed = self._source(node)
        if source is None and name == "train_dataset" and len(self._loads) == 1:
            source, _ = self._source(self._loads[0])
            changed = ["what lies between"]
        if source is None:
            option = name.removeprefix("train_")
            self._leave(name, node, f"{_RUN_TIME}; give its file or hub id as {option}")
            return
        if changed:
            done = ", ".join(changed)
            self._leave(name, node, f"{done} changes the rows when the script runs; save them")
        self.sources[name] = source

    def _source(self, node: ast.expr) -> tuple[Source | None, list[str]]:
        """The data set behind an expression, and the methods that change it on the way."""
        changed: list[str] = []
        split: str | None = None
        for _ in range(_DEEPEST):
            node = self._resolved(node)
            if isinstance(node, ast.Subscript):
                split = self._text(node.slice)
                node = node.value
            elif isinstance(node, ast.Call) and _called(node) == "load_dataset":
                return self._loaded(node, split), changed
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                changed.insert(0, f".{node.func.attr}()")
                node = node.func.value
            else:
                break
        return None, changed

    def _loaded(self, call: ast.Call, split: str | None) -> Source | None:
        found: dict[str, Any] = {}
        names = dict(zip(("path", "name"), call.args, strict=False))
        names.update({word.arg: word.value for word in call.keywords if word.arg})
        for name in ("path", "name", "data_files", "split"):
            try:
                found[name] = self._literal(names[name]) if name in names else None
            except ValueError:
                return None
        if not isinstance(found["path"], str):
            return None
        return source_of(found["path"], found["name"], found["data_files"], split or found["split"])

    def _text(self, node: ast.expr) -> str | None:
        try:
            value = self._literal(node)
        except ValueError:
            return None
        return value if isinstance(value, str) else None

    def _resolved(self, node: ast.expr) -> ast.expr:
        """What a name stands for, as far as it is given a value once."""
        for _ in range(_DEEPEST):
            if not isinstance(node, ast.Name) or node.id not in self._bound:
                break
            node = self._bound[node.id]
        return node

    def _literal(self, node: ast.expr) -> Any:
        node = self._resolved(node)
        if isinstance(node, ast.Attribute) and node.attr in _DTYPES:
            return node.attr  # torch.bfloat16
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
            raise ValueError from error

    def _leave(self, name: str, node: ast.expr, reason: str) -> None:
        self.left.append(f"{self._where(name, node)}: {reason}.")

    def _where(self, name: str, node: ast.expr) -> str:
        return f"{self.name} line {node.lineno}: {name}"


def _parsed(text: str, name: str) -> ast.Module:
    try:
        return ast.parse(text)
    except SyntaxError as error:
        raise ConfigError(
            "CP106", f"{name} line {error.lineno or 1} is not Python: {error.msg}."
        ) from error
    except (ValueError, MemoryError, RecursionError) as error:
        raise ConfigError("CP106", f"{name} is not Python that can be read: {error}.") from error


def _called(call: ast.Call) -> str:
    """The last word of what is called."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _loader(call: ast.Call) -> str:
    """The class whose ``from_pretrained`` is called."""
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    if isinstance(owner, ast.Attribute):
        return owner.attr
    return owner.id if isinstance(owner, ast.Name) else ""


def _bound_once(tree: ast.Module) -> dict[str, ast.expr]:
    """Names that are given a value in one place, by an assignment, and what it is."""
    stored = Counter(
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            stored[node.arg] += 1
        elif isinstance(node, ast.alias):
            stored[node.asname or node.name] += 1
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler) and node.name:
            stored[node.name] += 1
    found: dict[str, ast.expr] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target: ast.expr = node.targets[0]
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            target = node.target
        else:
            continue
        if isinstance(target, ast.Name) and stored[target.id] == 1 and node.value is not None:
            found[target.id] = node.value
    return found
