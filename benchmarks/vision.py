"""Claim: whole steps about pictures are 1.7 times as fast as TRL's way of pictures.

The model has PaddleOCR-VL's proportions: a quarter of its width and vocabulary, a third of its
depth, random weights. Pictures are pages of drawn words, completions random words, and both are
made on the spot from a seed, so that no data are needed. Time and memory are those of ``step.py``,
sides in turns, a process each.

TRL's CPO trains on no pictures. Its way of them is that of its DPO trainer, and that is measured:
its collator, which decodes and processes each picture for both completions, and the model called
with chosen and rejected rows in one padded batch, pixels for each row. On top is the loss of its
CPO trainer. Two heads are tried, and the faster one counts: the fused one of its DPO trainer, which
on a CPU scores the tokens of prompts too, and all logits, as in its CPO trainer. Metrics and
reference model are left out, in its favour.

One more side is our own path with pixels for every row (``layout="pictures-twice"``): what the
tower's once and shared prompts give alone. In the rows called "frozen" tower and projector do not
train, and pictures come again each epoch. There one more side keeps their features, and what was
kept counts as memory. No side keeps pixels there, which a large set would not leave room for.

    python benchmarks/vision.py [--rounds 3] [--rows pages ...]    into results/vision.json
    python benchmarks/vision.py --docs      write the table of docs/vision.md
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import step

sys.path.insert(0, str(step.ROOT))

WORDS = 25_856
"""A quarter of the vocabulary."""

SPECIAL = {
    "image_token": "<|picture|>",
    "start_token": "<|start|>",
    "end_token": "<|end|>",
}
TEMPLATE = (
    "{% for m in messages %}<|turn|>{{ m['role'] }} {% if m['content'] is string %}"
    "{{ m['content'] }}{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|start|><|picture|><|end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|done|>{% endfor %}{% if add_generation_prompt %}<|turn|>assistant {% endif %}"
)
TEXT: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5e5,
        "mrope_section": [16, 24, 24],
    },
    "vocab_size": WORDS,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
TOWER: dict[str, Any] = {
    "hidden_size": 288,
    "intermediate_size": 1076,
    "num_hidden_layers": 9,
    "num_attention_heads": 4,
    "image_size": 384,
    "patch_size": 14,
}
FROZEN = ("vision", "projector")

SPEED_GOAL, FROZEN_GOAL = 1.7, 2.0
ROWS: dict[str, dict[str, Any]] = {
    "pages": {"name": "pages of 448 × 448, 256 tokens each, fp32", "side": 448, "said": 120},
    "snippets": {"name": "snippets of 224 × 224, 64 tokens each, fp32", "side": 224, "said": 120},
    "stamps": {
        "name": "stamps of 112 × 112, 16 tokens each, and long answers, fp32",
        "side": 112,
        "said": 240,
    },
    "pages-bf16": {"name": "the pages, bf16", "side": 448, "said": 120, "bf16": True},
    "pages-frozen": {
        "name": "the pages, tower and projector frozen, fp32",
        "side": 448,
        "said": 120,
        "freeze": FROZEN,
    },
    "snippets-frozen": {
        "name": "the snippets, tower and projector frozen, fp32",
        "side": 224,
        "said": 120,
        "freeze": FROZEN,
    },
}
"""Row -> width and height of its pictures in pixels, words of a completion, what is frozen."""

PAIRS, STEPS = 4, 3
COMMON: dict[str, Any] = {"bf16": False, "freeze": (), "pairs": PAIRS, "steps": STEPS}
KEPT = "kept"
SIDES: dict[str, dict[str, Any]] = {
    "trl": {},
    "trl-logits": {},
    "counterpoint": {},
    "pictures-twice": {"layout": "pictures-twice"},
    KEPT: {"picture_cache_gb": 4.0},
}
"""Name -> our options of it; TRL's two have none."""

OF_TRL = ("trl", "trl-logits")


def work_of(row: str) -> dict[str, Any]:
    """A row's work: what is common to all, and its own."""
    return {**COMMON, **ROWS[row], "options": {"max_length": 2048}}


def sides_of(row: str) -> tuple[str, ...]:
    """The sides that a row has."""
    return tuple(side for side in SIDES if side != KEPT or ROWS[row].get("freeze"))


# What both sides train on, and what


def rows_of(work: dict[str, Any]) -> list[dict[str, Any]]:
    """Pictures with two texts each, of one seed. Those of frozen towers come again each epoch."""
    steps = 1 if work["freeze"] else work["steps"] + step.WARM_UP
    chance = np.random.default_rng(7)
    return [
        {
            "images": [{"bytes": page(work["side"], chance), "path": None}],
            "prompt": [{"role": "user", "content": "w1 w2 w3 w4 w5 w6 w7"}],
            "chosen": [{"role": "assistant", "content": words(work["said"], chance)}],
            "rejected": [{"role": "assistant", "content": words(work["said"], chance)}],
        }
        for _ in range(work["pairs"] * steps)
    ]


def words(count: int, chance: np.random.Generator) -> str:
    """Words of the vocabulary, three quarters to five quarters of so many."""
    many = int(chance.integers(3 * count // 4, 5 * count // 4 + 1))
    return " ".join(f"w{number}" for number in chance.integers(0, WORDS - 100, many))


def page(side: int, chance: np.random.Generator) -> bytes:
    """A square page of words as PNG."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(image)
    for top in range(4, side - 12, 14):
        pen.text((4, top), words(side // 28, chance), fill=(20, 20, 60))
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()


def processor() -> Any:
    """PaddleOCR-VL's own, over a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PaddleOCRVLProcessor, PreTrainedTokenizerFast
    from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import (
        PaddleOCRVLImageProcessorPil,
    )

    first = ["<pad>", "<unk>", "<|done|>", "<|turn|>", "user", "assistant", *SPECIAL.values()]
    names = [*first, *(f"w{number}" for number in range(WORDS - len(first)))]
    inner = Tokenizer(
        models.WordLevel({name: place for place, name in enumerate(names)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(["<|done|>", "<|turn|>", *SPECIAL.values()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|done|>",
        chat_template=TEMPLATE,
        extra_special_tokens=SPECIAL,
    )
    return PaddleOCRVLProcessor(
        PaddleOCRVLImageProcessorPil(min_pixels=28 * 28, max_pixels=1024 * 1024),
        tokenizer,
        chat_template=TEMPLATE,
    )


def model_of(work: dict[str, Any], tokenizer: Any) -> Any:
    """The model from random weights, what does not train frozen."""
    import torch
    from transformers import PaddleOCRVLConfig, PaddleOCRVLForConditionalGeneration

    from counterpoint.models.trainable import freeze_parts

    torch.manual_seed(0)
    config = PaddleOCRVLConfig(
        text_config={**TEXT, **work.get("text", {})},
        vision_config={**TOWER, **work.get("tower", {})},
        image_token_id=tokenizer.image_token_id,
        vision_start_token_id=tokenizer.start_token_id,
        vision_end_token_id=tokenizer.end_token_id,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = PaddleOCRVLForConditionalGeneration(config)
    freeze_parts(model, work["freeze"])
    return model


# Both sides


def trainer_of(side: str, work: dict[str, Any], folder: Path) -> Any:
    """A trainer of one side, ready to train the work's steps.

    Args:
        side: of ``SIDES``.
        work: as ``work_of``; ``text`` and ``tower`` replace parts of the model's shape.
        folder: for the run.
    """
    from datasets import Dataset, Image, List

    maker = processor()
    rows = Dataset.from_list(rows_of(work)).cast_column("images", List(Image()))
    parts = {
        "model": model_of(work, maker.tokenizer),
        "processing_class": maker,
        "train_dataset": rows,
    }
    options = step.options_of(work, folder)
    if side in OF_TRL:
        return _trl(parts, options, fused=side == "trl")
    from counterpoint import CPOConfig, CPOTrainer

    return CPOTrainer(args=CPOConfig(monitor_steps=0, **SIDES[side], **options), **parts)


def measured(side: str, work: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A side's measurement, as ``step.train`` has it."""
    from counterpoint.data import looked_at
    from counterpoint.forward.kept_features import kept_features

    if work["freeze"]:
        looked_at.MOST_KEPT = 0
    trainer = trainer_of(side, work, folder)
    found = step.train(trainer)
    kept = kept_features(trainer.model)
    held = 0 if kept is None else kept.held  # after training too, and so not in the peak over it
    return {**found, "peak_mb": found["peak_mb"] + held / 2**20}


def _trl(parts: dict[str, Any], options: dict[str, Any], *, fused: bool) -> Any:
    """TRL's collator, head and loss in transformers' own trainer."""
    from transformers import Trainer, TrainingArguments
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference
    from trl.trainer.utils import add_fused_lm_head

    class OfPictures(Trainer):
        """A trainer with what TRL's ``cpo_loss`` reads of itself, as its options have it."""

        wanted = CPOConfig(output_dir=options["output_dir"], use_cpu=options["use_cpu"])
        alpha, beta = wanted.alpha, wanted.beta
        loss_type, label_smoothing = wanted.loss_type, wanted.label_smoothing

        def compute_loss(self, model: Any, inputs: Any, **unused: Any) -> Any:
            mask = inputs.pop("completion_mask")
            labels = inputs["input_ids"].masked_fill(mask == 0, -100)
            if fused:
                said = model(**inputs, labels=labels, use_cache=False, fused_lm_head=True)
                scores = said.log_probs.sum(1)
            else:
                logits = model(**inputs, use_cache=False).logits
                scores = CPOTrainer.get_batch_logps(logits, labels)
            chosen, rejected = scores.chunk(2)
            losses, *_ = CPOTrainer.cpo_loss(self, chosen, rejected)
            likelihood = -chosen.sum() / mask[: len(mask) // 2].sum()
            return losses.mean() + self.wanted.cpo_alpha * likelihood

    longest = options.pop("max_length")
    if fused:
        add_fused_lm_head(parts["model"])
    return OfPictures(
        args=TrainingArguments(remove_unused_columns=False, **options),
        data_collator=DataCollatorForVisionPreference(parts["processing_class"], longest),
        **parts,
    )


def compare(row: str, rounds: int, folder: Path) -> dict[str, Any]:
    """The sides of a row."""
    sides = step.in_turns(__file__, sides_of(row), row, PAIRS, rounds, folder)
    best = max(OF_TRL, key=lambda side: sides[side]["pairs_per_second"])
    result: dict[str, Any] = {"row": row, "rounds": rounds, "best_of_trl": best, **sides}
    for name, one, other in (
        ("trl", "counterpoint", best),
        ("once", "counterpoint", "pictures-twice"),
        (KEPT, KEPT, best),
    ):
        if one in sides:
            mine, theirs = sides[one], sides[other]
            result[f"{name}_speed"] = mine["pairs_per_second"] / theirs["pairs_per_second"]
            result[f"{name}_memory"] = mine["peak_mb"] / theirs["peak_mb"]
    return result


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as the documentation shows them."""
    lines = [
        f"| {PAIRS} pairs a step | TRL 1.16, pairs/s | Counterpoint, pairs/s | faster | memory | "
        "pictures and prompts once alone |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        name, frozen = ROWS[row["row"]]["name"], ROWS[row["row"]].get("freeze")
        once = f"{row['once_speed']:.1f} ×"
        goal = FROZEN_GOAL if frozen else SPEED_GOAL
        lines.append(_line(row, name, ("counterpoint", "trl"), goal, once))
        if frozen:
            lines.append(_line(row, f"{name}, features kept", (KEPT, KEPT), goal, ""))
    return "\n".join(lines)


def _line(row: dict[str, Any], name: str, of: tuple[str, str], goal: float, once: str) -> str:
    side, against = of
    rates = [
        f"{row[one]['pairs_per_second']:.2f} ({row[one]['min']:.2f} to {row[one]['max']:.2f})"
        for one in (row["best_of_trl"], side)
    ]
    speed, memory = row[f"{against}_speed"], row[f"{against}_memory"]
    return (
        f"| {name} | {' | '.join(rates)} | {speed:.1f} × ({step.against(speed, goal)}) | "
        f"{100 * memory:.0f} % | {once} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--into", type=Path, default=step.RESULTS, help="folder of the results")
    parser.add_argument("--docs", action="store_true", help="write the table, measure nothing")
    parser.add_argument("--worker", nargs=3, metavar=("SIDE", "ROW", "FOLDER"))
    options = parser.parse_args()
    if options.worker:
        side, row, _ = options.worker
        with tempfile.TemporaryDirectory() as own:
            print(json.dumps(measured(side, work_of(row), Path(own))))
        return
    if options.docs:
        path = step.RESULTS / "vision.json"
        if path.is_file():
            rows = json.loads(path.read_text())["rows"]
            step.put_between(step.ROOT / "docs" / "vision.md", "vision", table(rows))
        return
    with tempfile.TemporaryDirectory() as folder:
        for row in options.rows:
            result = {**compare(row, options.rounds, Path(folder)), "machine": step.machine()}
            step.keep(result, options.into / "vision.json", ROWS)
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
