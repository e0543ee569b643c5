"""RunOptions: what the command needs beside ``CPOConfig``: a model, data, an adapter.

A line per option with its meaning, as in ``config``; ``--help`` and docs/options.md read it.

Not here: loading any of it (``cli.parts``, ``cli.own_data``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from counterpoint.data.listed import ListedSet, read_listed
from counterpoint.errors import ConfigError
from counterpoint.options.declared import option

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class RunOptions:
    """What to train on what; every field's help states its range and unit.

    Raises:
        ConfigError: CP103 for a value outside its range, CP104 for options that contradict each
            other, CP107 where the model or the data set is missing.
    """

    model: str | None = option(
        None,
        "Required. A model id of the Hugging Face hub, a folder with a model, one with an adapter, "
        "which is then trained on, or a GGUF file, which is dequantised.",
    )
    revision: str | None = option(None, "Branch, tag or commit of a model from the hub.")
    tokenizer: str | None = option(
        None, "Id or folder of the tokenizer; null: the one that comes with the model."
    )
    resize_vocab: bool = option(
        False,
        "Give each token that the model has no row for one, the mean of the others. With an "
        "adapter the rows of new tokens train, and are saved in it.",
    )
    chat_template: str | None = option(
        None, "File with a chat template in Jinja, used in place of the tokenizer's own."
    )
    from_scratch: bool = option(
        False, "Start from random weights (seeded by seed) of the model's config.json."
    )
    dtype: str | None = option(
        None,
        "Precision the weights are kept in. null: float32 when all of them are trained, since "
        "bfloat16 weights cannot take updates as small as a learning rate of 1e-6 makes "
        "(bfloat16 with stochastic_rounding); auto, as the files have it, with lora_r.",
        DTYPES,
    )
    attn_implementation: str | None = option(
        None, "Attention of transformers: eager, sdpa, ...; null: its own choice."
    )
    dataset: list[str] = option(
        [],
        "Required. Files (.jsonl, .json, .csv, .tsv, .parquet, also .gz), or one "
        "folder or hub id (owner/name, owner/name:split, owner/name:configuration:split).",
    )
    dataset_split: str | None = option(
        None, "Split to train on; null: train, or the only one there is."
    )
    datasets: list[dict[str, Any] | str] = option(
        [],
        "In place of dataset: several sets, each with its weight (docs/data.md). A mapping of "
        "path, weight, subset, split, columns and rows; or a word, PATH[#ROWS][:WEIGHT], as "
        "a.jsonl:2.",
    )
    max_rows: int | None = option(
        None, "Most rows of each set to train on, its first ones, >= 1; null: all."
    )
    streaming: bool = option(
        False, "Read the data set while training, never whole; needs max_steps."
    )
    eval_dataset: list[str] | dict[str, str] = option(
        [],
        "What to evaluate on, as for dataset; name=path for several sets with metrics "
        "of their own. With eval_strategy no they are used once, at the end.",
    )
    eval_dataset_split: str | None = option(
        None, "Split to evaluate on; null: test, validation, or the only one there is."
    )
    eval_share: float | None = option(
        None,
        "Share of the training rows to hold out and evaluate on, in (0, 1), by prompt: no prompt "
        "has rows on both sides. A function of the rows and of data_seed, or else seed.",
    )
    lora_r: int | None = option(
        None, "Rank of a LoRA adapter, >= 1; null: train all weights. Needs peft."
    )
    lora_alpha: int | None = option(
        None, "Scale of the adapter, >= 1; it counts lora_alpha / lora_r. null: 2 x lora_r."
    )
    lora_dropout: float = option(
        0.0, "Dropout before the adapter, in [0, 1); disable_dropout sets it to 0."
    )
    lora_target_modules: list[str] | None = option(
        None,
        "Layers that get an adapter, by the end of their names; null: every linear layer of what "
        "reads text.",
    )
    lora_target_parameters: list[str] | None = option(
        None,
        "Weights that get an adapter though no linear layer holds them, by the end of their "
        "names: those of experts, as mlp.experts.gate_up_proj.",
    )
    lora_modules_to_save: list[str] | None = option(
        None, "Layers trained in full beside the adapter and saved with it."
    )
    freeze: list[str] | None = option(
        None,
        "Parts of a model that sees pictures which do not train: vision (its tower), projector.",
    )
    use_rslora: bool = option(
        False, "Rank-stabilised LoRA: the adapter counts lora_alpha / sqrt(lora_r)."
    )
    use_dora: bool = option(False, "DoRA: adapt direction and magnitude of weights apart.")
    create_new_adapter: bool = option(
        False,
        "Where model is an adapter: merge it into its base, which the run keeps in its folder "
        "base, and train a new adapter on top. Needs lora_r.",
    )
    merge_at_end: bool = option(
        False,
        "When the run is over, write the one model that adapter and base are into its folder "
        "merged, as counterpoint merge does.",
    )
    doctor: bool = option(
        True,
        "Let the doctor look at options, data, tokenizer and model before training: errors "
        "refuse, warnings are shown. off: the first mistake met ends the run.",
    )
    resume: str | None = option(
        None,
        "Resume from a checkpoint: auto, after the newest good one in output_dir, or from the "
        "start where there is none; latest, which insists on one; or its folder.",
    )
    overwrite_output_dir: bool = option(
        False,
        "Train into a folder that already holds a run; its checkpoints and model are removed.",
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        self._check_required()
        self._check_data()
        self._check_adapter()

    def _check_required(self) -> None:
        wanted = {
            "model": "a hub id or a folder, as in --model Qwen/Qwen2.5-0.5B",
            "dataset": "a file or a hub id, as in --dataset pairs.jsonl",
        }
        if self.datasets:
            del wanted["dataset"]
        missing = [f"{n} ({what})" for n, what in wanted.items() if _is_blank(getattr(self, n))]
        if missing:
            raise ConfigError(
                "CP107",
                f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; "
                "give each as a flag or as a line of the configuration file.",
            )

    @property
    def listed_sets(self) -> tuple[ListedSet, ...]:
        """The sets of ``datasets``, read and checked."""
        return tuple(map(read_listed, self.datasets))

    def _check_data(self) -> None:
        given = {
            "dataset": bool(self.dataset),
            "dataset_split": self.dataset_split is not None,
            "streaming": self.streaming,
            "eval_dataset": bool(self.eval_dataset),
            "eval_dataset_split": self.eval_dataset_split is not None,
        }
        why = {
            ("datasets", "dataset"): "each names what to train on; list all sets in datasets",
            ("datasets", "dataset_split"): "each set says its own split",
            ("datasets", "streaming"): "sets with weights are shuffled whole; join streams in a "
            "script (docs/data.md)",
            ("eval_share", "eval_dataset"): "each says what to evaluate on; drop one",
            ("eval_share", "eval_dataset_split"): "the rows are held out of those to train on",
            ("eval_share", "streaming"): "a prompt's rows may stand anywhere in a stream, which is "
            "never read whole. Give an eval_dataset",
        }
        asked = {"datasets": bool(self.listed_sets), "eval_share": self.eval_share is not None}
        for (one, other), reason in why.items():
            if asked[one] and given[other]:
                raise ConfigError("CP104", f"{one} with {other}: {reason}.")
        _check_range("max_rows", self.max_rows, 1, None)
        if self.eval_share is not None and not 0 < self.eval_share < 1:
            raise ConfigError(
                "CP103", f"eval_share={self.eval_share:g} should be above 0 and below 1."
            )

    def _check_adapter(self) -> None:
        if self.lora_r is None:
            unused = [
                name
                for name in self.__dataclass_fields__
                if name.startswith(("lora_", "use_", "create_new_")) and getattr(self, name)
            ]
            if unused:
                raise ConfigError(
                    "CP104",
                    f"{', '.join(unused)} would do nothing without an adapter; add lora_r "
                    "(16 is usual), or leave out what would do nothing.",
                )
        for other in ("lora_dropout", "use_dora"):
            if self.lora_target_parameters and getattr(self, other):
                raise ConfigError(
                    "CP104",
                    f"lora_target_parameters with {other}: PEFT has no such adapter of a weight "
                    f"that is no layer. Leave {other} out.",
                )
        _check_range("lora_r", self.lora_r, 1, None)
        _check_range("lora_alpha", self.lora_alpha, 1, None)
        _check_range("lora_dropout", self.lora_dropout, 0, 1)


def _check_range(name: str, value: float | None, low: float, high: float | None) -> None:
    if value is None or (value >= low and (high is None or value < high)):
        return
    wanted = f"at least {low}" if high is None else f"in [{low}, {high})"
    raise ConfigError("CP103", f"{name}={value} should be {wanted}.")


def _is_blank(named: str | list[str] | None) -> bool:
    """Whether a name is missing, or one of several is blank, which would be the current folder."""
    names = [named] if isinstance(named, str) else named or [""]
    return not all(str(name).strip() for name in names)
