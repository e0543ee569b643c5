"""A replaced method of TRL's or transformers' trainer is called, or refused by name."""

from __future__ import annotations

import ast
import inspect
import types
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast, Trainer

from counterpoint import ConfigError, CPOConfig, CPOTrainer
from counterpoint.trainer.hooks import ATTRIBUTES, CALLS, NOT_CALLED
from tests.models_on_the_spot import make_model
from tests.steps import random_pairs

PAIRS = random_pairs(4)


class Build:
    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        self.folder, self.tokenizer = folder, tokenizer

    def __call__(self, kind: type[CPOTrainer] = CPOTrainer, **options: Any) -> CPOTrainer:
        given = {"max_steps": 1, "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1}
        args = CPOConfig(output_dir=str(self.folder), use_cpu=True, **{**given, **options})
        return kind(
            make_model(),
            args,
            train_dataset=PAIRS,
            eval_dataset=PAIRS,
            processing_class=self.tokenizer,
        )


@pytest.fixture
def build(tmp_path: Path, gpt2_tokenizer: PreTrainedTokenizerFast) -> Build:
    return Build(tmp_path, gpt2_tokenizer)


def replaced(name: str, function: Any = None) -> type[CPOTrainer]:
    return type("Mine", (CPOTrainer,), {name: function or (lambda self, *a, **k: None)})


def methods(kind: type[Any]) -> dict[str, ast.FunctionDef]:
    module = ast.parse(inspect.getsource(import_module(kind.__module__)))
    own = next(n for n in module.body if isinstance(n, ast.ClassDef) and n.name == kind.__name__)
    return {node.name: node for node in own.body if isinstance(node, ast.FunctionDef)}


def uses(node: ast.AST, *owners: str) -> set[str]:
    return {
        part.attr
        for part in ast.walk(node)
        if isinstance(part, ast.Attribute) and ast.unparse(part.value) in owners
    }


def called() -> set[str]:
    """Methods that a run, an evaluation or a save comes to call, found in the sources."""
    last = CPOTrainer.__mro__.index(Trainer)
    kinds = [methods(kind) for kind in CPOTrainer.__mro__[: last + 1]]

    def first(name: str, above: int = 0) -> tuple[int, str]:
        return next((n for n in range(above, len(kinds)) if name in kinds[n]), len(kinds)), name

    entries = ("__init__", "train", "evaluate", "predict", "save_model", "push_to_hub", "measure")
    left = [first(name) for name in (*entries, "hyperparameter_search", "log")]
    seen, found = set(), set()
    while left:
        place = left.pop()
        kind, name = place
        if place in seen or kind == len(kinds):
            continue
        seen.add(place)
        node = kinds[kind][name]
        found |= uses(node, "self")
        left += [first(name) for name in uses(node, "self")]
        left += [first(name, kind + 1) for name in uses(node, "super()")]
        left += [first(name, len(kinds) - 1) for name in uses(node, "Trainer")]
    return found


ENTRIES = {"__init__", "train", "predict", "hyperparameter_search", "end", "pop_callback"}
ENTRIES |= {"remove_callback"}


def test_every_method_of_transformers_that_nothing_calls_here_is_in_the_table() -> None:
    """One that is called is not: hooks that work must not be refused."""
    theirs = set(methods(Trainer))
    assert theirs - called() - ENTRIES == set(NOT_CALLED) & theirs


def test_every_method_of_trls_trainer_is_called_here_or_in_the_table() -> None:
    trl = pytest.importorskip("trl.experimental.cpo.cpo_trainer")
    source = Path(inspect.getsourcefile(trl) or "").read_text(encoding="utf-8")
    node = next(
        n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == "CPOTrainer"
    )
    theirs = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
    assert theirs - set(NOT_CALLED) - called() - ENTRIES == set()


@pytest.mark.parametrize("name", sorted(NOT_CALLED))
def test_a_replacement_that_nothing_would_call_is_refused_with_our_hook(
    build: Build, name: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        build(replaced(name))
    assert caught.value.code == "CP109"
    assert f"Mine.{name} would never be called" in caught.value.message
    assert NOT_CALLED[name] in caught.value.message


def test_one_that_a_mixin_or_a_class_between_brings_is_refused_too(build: Build) -> None:
    mixin = type("Mixin", (), {"get_batch_loss_metrics": lambda self, *a: None})
    with pytest.raises(ConfigError, match=r"^CP109 Mine.get_batch_loss_metrics"):
        build(type("Mine", (mixin, CPOTrainer), {}))
    with pytest.raises(ConfigError, match=r"^CP109 Last.cpo_loss"):
        build(type("Last", (replaced("cpo_loss"),), {}))
    static = staticmethod(lambda *a: None)
    with pytest.raises(ConfigError, match=r"^CP109 Mine.cpo_loss"):
        build(replaced("cpo_loss", static))


def test_a_patched_class_is_refused(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CPOTrainer, "cpo_loss", lambda self, *a: None, raising=False)
    with pytest.raises(ConfigError, match=r"^CP109 CPOTrainer.cpo_loss"):
        build()


@pytest.mark.parametrize("name", ["cpo_loss", "prediction_step", *ATTRIBUTES])
def test_a_patched_trainer_is_refused_when_it_is_to_train_or_to_evaluate(
    build: Build, name: str
) -> None:
    trainer = build()
    setattr(trainer, name, lambda *a, **k: None)
    for work in (trainer.train, trainer.evaluate):
        with pytest.raises(ConfigError, match=rf"^CP109 \w+\.{name}"):
            work()


def test_a_method_that_the_users_own_loss_calls_is_left_alone(build: Build) -> None:
    calls: list[str] = []

    class Mine(CPOTrainer):
        def cpo_loss(self, loss: Any) -> Any:
            calls.append("cpo_loss")
            return self.get_batch_logps(loss)

        def get_batch_logps(self, loss: Any) -> Any:
            calls.append("get_batch_logps")
            return 2 * loss

        def compute_loss(self, model: Any, inputs: Any, **more: Any) -> Any:
            return self.cpo_loss(super().compute_loss(model, inputs, **more))

    stock = build()
    stock.train()
    mine = build(Mine)
    mine.train()
    assert calls[:2] == ["cpo_loss", "get_batch_logps"]
    norms = [t.state.log_history[0]["grad_norm"] for t in (stock, mine)]
    assert norms[1] == pytest.approx(2 * norms[0], rel=1e-5)


def test_methods_that_call_only_each_other_are_still_never_called(build: Build) -> None:
    class Mine(CPOTrainer):
        def get_batch_loss_metrics(self, *a: Any) -> Any:
            return self.cpo_loss(*a)

        def cpo_loss(self, *a: Any) -> Any:
            return self.get_batch_loss_metrics(*a)

    with pytest.raises(ConfigError, match=r"^CP109 Mine.cpo_loss"):
        build(Mine)


def short(name: str) -> Any:
    """The hook as scripts of earlier releases wrote it: one argument less."""
    texts = {
        "compute_loss": "lambda self, model, inputs, return_outputs=False: None",
        "training_step": "lambda self, model, inputs: None",
        "get_batch_samples": "lambda self, model, batch: None",  # TRL's, before 0.13
        "log": "lambda self, logs: None",
        "evaluate": "lambda self, eval_dataset=None: None",
        "get_eval_dataloader": "lambda self: None",
        "evaluation_loop": "lambda self, dataloader, description: None",
        "create_scheduler": "lambda self: None",
        "save_model": "lambda self, output_dir=None: None",
        "floating_point_ops": "lambda self: None",
    }
    return eval(texts[name])


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_hook_with_other_arguments_is_refused_before_the_run(build: Build, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^CP111 Mine.{name} is called as {name}\("):
        build(replaced(name, short(name)))
    trainer = build()
    setattr(trainer, name, types.MethodType(short(name), trainer))
    with pytest.raises(ConfigError, match=rf"^CP111 CPOTrainer.{name} "):
        trainer.train()


def test_hooks_that_are_called_are_called(build: Build) -> None:
    seen: set[str] = set()

    def noting(name: str) -> Any:
        def hook(self: Any, *args: Any, **more: Any) -> Any:
            seen.add(name)
            return getattr(CPOTrainer, name)(self, *args, **more)

        return hook

    names = {*CALLS, "create_optimizer", "get_train_dataloader", "_prepare_inputs"}
    names |= {"compute_loss_context_manager", "_save", "_get_grad_norm", "_wrap_model"}
    kind = type("Mine", (CPOTrainer,), {name: noting(name) for name in names})
    trainer = build(kind, eval_strategy="steps", eval_steps=1)
    trainer.train()
    trainer.save_model()
    assert seen == names
