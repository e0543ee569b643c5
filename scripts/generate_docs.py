"""Write the pages of docs/ that the code says, or check that they are up to date.

Options, error codes, presets, what can be imported, and the doctor's diagnoses in two languages. Of
the pages on pictures a block: which kinds train in which layouts, on which engines.

    python scripts/generate_docs.py            write them
    python scripts/generate_docs.py --check    exit 1 where they differ from what it would write

Help texts live with their options and meanings with their codes; nothing is said here twice.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from pathlib import Path

from api_page import api_page

from counterpoint import errors
from counterpoint.config import REFUSED
from counterpoint.doctor.presets import PRESETS, Preset
from counterpoint.doctor.table import TABLE, TABLE_ZH, Diagnosis, severity_of
from counterpoint.models.support import support, support_columns
from counterpoint.options.declared import Option, kind
from counterpoint.options.help import as_written, show_default, summary
from counterpoint.options.table import COUNTERPOINT, GROUPS, RUN, TRANSFORMERS, options

DOCS = Path(__file__).parents[1] / "docs"
NOTE = "<!-- Written by scripts/generate_docs.py (make docs); edit the code instead. -->\n"

ERROR_CLASSES = {
    "1": (errors.ConfigError, "What was asked for"),
    "2": (errors.DataError, "The data"),
    "3": (errors.ModelError, "Model and tokenizer"),
    "4": (errors.TrainingError, "While training"),
    "5": (errors.SetupError, "The machine and its packages"),
}


def options_page() -> str:
    """docs/options.md."""
    parts = [
        NOTE,
        "# Options\n",
        "Every option is a line of YAML (`beta: 0.1`) and a flag (`--beta 0.1`) of "
        "`counterpoint train`; flags override the file. Those of the second and third table are "
        "fields of `CPOConfig` too. `null` stands for no value.\n",
    ]
    for group in (RUN, COUNTERPOINT):
        parts += [f"## {group}\n", f"{GROUPS[group]}\n", _table(_described(group)), ""]
    parts += ["## Refused\n", "Other values would mislead, or do nothing.\n", _refused(), ""]
    parts += [
        f"## {TRANSFORMERS}\n",
        f"{GROUPS[TRANSFORMERS]} The sentence is the first of transformers' own help.\n",
        _table(_described(TRANSFORMERS)),
    ]
    return "\n".join(parts)


def errors_page() -> str:
    """docs/errors.md."""
    parts = [
        NOTE,
        "# Error codes\n",
        "Every error that a user can cause carries a code, which never changes its meaning. The "
        "message says what was seen, what was expected and what to do. In Python they are "
        "`counterpoint.CounterpointError` and its subclasses, with `.code` and `.message`; the "
        "command prints one line and exits with 2 (with 1 for CP515, where a disk refused on the "
        "way).\n",
    ]
    for hundred, codes in groupby(errors.CODES, key=lambda code: code[2]):
        kind_of_error, title = ERROR_CLASSES[hundred]
        rows = [("Code", "Meaning"), *((f"`{code}`", errors.CODES[code]) for code in codes)]
        parts += [f"## {title}: `{kind_of_error.__name__}`\n", _table(rows), ""]
    return "\n".join(parts)


PRESET_HEAD = (
    "Preset",
    "Method and model",
    "`loss_type`",
    "`beta`",
    "`gamma_beta_ratio`",
    "`cpo_alpha`",
    "`learning_rate`",
    "Schedule, warm-up",
    "`max_length`",
    "Epochs",
    "Pairs a step",
    "Published in",
)


WITHOUT_PRESET = (
    ("Paper", "Models", "Why it is no preset"),
    (
        "CRPO, arXiv:2501.13927",
        "NLLB, beside decoders",
        "it chooses pairs; its values for NLLB stand in no text that we could read",
    ),
    (
        "DQO, arXiv:2409.17673",
        "translation models of its authors",
        "a variant of DPO, which compares with a reference model",
    ),
    (
        "SLiC-HF, arXiv:2305.10425",
        "T5",
        "the hinge, but with the likelihood of a third text, the reference summary",
    ),
    (
        "SLiC, arXiv:2210.00045",
        "PEGASUS",
        "ranks the model's own texts by their likeness to a reference",
    ),
)
"""Papers that train encoder-decoders on preferences, and why no preset is of theirs."""


def presets_page() -> str:
    """docs/presets.md."""
    parts = [
        NOTE,
        "# Presets\n",
        "Published settings. `counterpoint init --preset NAME --model M --dataset D --out FILE` "
        "writes one as a run's file, with a word on each value; `counterpoint init --list` shows "
        "them. The doctor compares runs with the same table. Copy one as it is, then change one "
        "thing at a time: a value belongs to its loss and model, and rarely carries over.\n",
        "How the pairs of a step are cut into micro-batches changes memory and speed, never the "
        "result: what counts is per_device_train_batch_size x gradient_accumulation_steps x "
        "ranks.\n",
        _table([PRESET_HEAD, *map(_preset, PRESETS)]),
        "\n## Encoder-decoders\n",
        "No preset is of an encoder-decoder such as T5, NLLB or mBART. A preset is what a paper "
        "states in full: a loss of [objectives.md](objectives.md) with its values, for a model "
        "that trains here. These papers train such models on preferences, and were looked at in "
        "November 2026:\n",
        _table(WITHOUT_PRESET),
        "\nCPO (arXiv:2401.08417) and DPO with MBR decoding (arXiv:2311.08380) are made for "
        "translation too, but train decoders.",
    ]
    return "\n".join(parts)


def _preset(preset: Preset) -> tuple[str, ...]:
    warm_up = f"{preset.warmup_steps:g} {'of the run' if preset.warmup_steps < 1 else 'steps'}"
    loss = f"`{preset.loss_type}`" + (f", `alpha` {preset.alpha:g}" if preset.alpha else "")
    trained = f", LoRA of rank {preset.lora_r}" if preset.adapter else ""
    decay = f", weight decay {preset.weight_decay:g}" if preset.weight_decay else ""
    return (
        f"`{preset.name}`",
        f"{preset.method}, {preset.model}",
        loss,
        "" if preset.beta is None else f"{preset.beta:g}",
        "" if preset.ratio is None else f"{preset.ratio:g}",
        f"{preset.cpo_alpha:g}",
        f"{preset.learning_rate:g}{trained}{decay}",
        f"{preset.schedule}, {warm_up}",
        str(preset.max_length),
        str(preset.epochs),
        str(preset.pairs),
        preset.source,
    )


SEVERITIES_ZH = {"error": "错误", "warning": "警告", "note": "说明"}
SUBJECTS = {
    "1": ("Options and steps", "选项与步数"),
    "2": ("Data", "数据"),
    "3": ("Tokenizer and model", "分词器与模型"),
    "4": ("While training: alarms", "训练之中：警报"),
    "5": ("Machine", "机器"),
    "9": ("The doctor itself", "医生自身"),
}


def diagnoses_page() -> str:
    """docs/diagnoses.md."""
    parts = [
        NOTE,
        "# Diagnoses\n",
        "[中文](diagnoses.zh-CN.md)\n",
        "What `counterpoint doctor CONFIG.yaml` can find, and `counterpoint train` before it "
        "trains (unless `--doctor off`). `counterpoint doctor --explain CODE` shows one of them, "
        "`--json` all that were found, for machines. From Python: "
        "`counterpoint.doctor.examine`. Alarms of a run that is under way have their codes here "
        "too; [alarms.md](alarms.md) says when they are raised.\n",
        "Errors (`CP`) refuse to train, warnings (`CW`) do not, notes (`CN`) only tell. The exit "
        "code is 2 with errors, 1 with warnings, else 0. A code never changes its meaning.\n",
        *_diagnoses(TABLE, 0, ("Code", "Severity", "What is so", "Why it matters", "What to do")),
    ]
    return "\n".join(parts)


def diagnoses_page_zh() -> str:
    """docs/diagnoses.zh-CN.md."""
    parts = [
        NOTE,
        "# 诊断\n",
        "[English](diagnoses.md)\n",
        "`counterpoint doctor CONFIG.yaml` 能发现的问题；`counterpoint train` 在训练之前也会检查"
        "（除非 `--doctor off`）。`counterpoint doctor --explain CODE` 解释一个代码，`--json` "
        "供程序读取。训练进行中发出的警报，其代码也在这里；何时发出见 [alarms.md](alarms.md)。\n",
        "错误（`CP`）拒绝训练，警告（`CW`）不拒绝，说明（`CN`）只是告知。有错误时退出码为 2，"
        "有警告时为 1，否则为 0。代码的含义永不改变。\n",
        *_diagnoses(TABLE_ZH, 1, ("代码", "级别", "情况", "为什么重要", "怎么办")),
    ]
    return "\n".join(parts)


def _diagnoses(
    table: Mapping[str, Diagnosis], language: int, head: tuple[str, ...]
) -> Iterable[str]:
    for subject, titles in SUBJECTS.items():
        rows = [head]
        for code, entry in table.items():
            if code[2] != subject:
                continue
            severity = severity_of(code)
            shown = SEVERITIES_ZH[severity] if language else severity
            rows.append((f"`{code}`", shown, entry.title, entry.why, entry.do))
        yield from (f"## {titles[language]}\n", _table(rows), "")


def _described(group: str) -> list[tuple[str, ...]]:
    rows = [("Option", "Type", "Default", "Meaning")]
    for option in options().values():
        if option.group == group and option.name not in REFUSED:
            meaning = summary(option)
            rows.append((f"`{option.name}`", _type(option), f"`{show_default(option)}`", meaning))
    return rows


def _type(option: Option) -> str:
    if option.choices:
        return ", ".join(f"`{word}`" for word in option.choices)
    return kind(option)


def _refused() -> str:
    rows = [("Option", "Passes", "Why any other value does not")]
    rows += [
        (f"`{name}`", f"`{as_written(passing)}`", f"{reason}.")
        for name, (passing, reason) in sorted(REFUSED.items())
    ]
    return _table(rows)


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


SHOWN_AS = {"plain": "one process", "ddp": "DDP", "fsdp2": "FSDP2"}
"""How the table of support calls engines; everything else is called by its own name."""


def support_table() -> str:
    """Which kinds that see train in which layouts, on which engines and with adapters."""
    names = support_columns()
    rows = [("kind", *(SHOWN_AS.get(name, name) for name in names))]
    for row in support():
        told = ("no" if row.why_not[name] else "yes" for name in names)
        rows.append((f"`{row.kind}`", *told))
    return _table(rows)


BLOCKS: dict[tuple[str, str], Callable[[], str]] = {
    (page, "support"): support_table for page in ("vision.md", "vision.zh-CN.md")
}
"""Parts of pages that are otherwise written by hand, by the page and the block's name."""


def _with_block(page: str, name: str, content: str) -> str:
    """A page with what stands between a block's marks written anew."""
    begin, end = f"<!-- {name}: begin -->\n", f"\n<!-- {name}: end -->"
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    if not after:
        raise ValueError(f"the page has no block {name!r}")
    return f"{before}{begin}{content}{end}{after}"


PAGES: dict[str, Callable[[], str]] = {
    "options.md": options_page,
    "errors.md": errors_page,
    "presets.md": presets_page,
    "diagnoses.md": diagnoses_page,
    "diagnoses.zh-CN.md": diagnoses_page_zh,
    "api.md": api_page,
}


def main() -> int:
    """Write or check the pages."""
    check = "--check" in sys.argv[1:]
    stale = []
    written = {name: page().rstrip("\n") + "\n" for name, page in PAGES.items()}
    for (name, block), content in BLOCKS.items():
        whole = (DOCS / name).read_text(encoding="utf-8")
        written[name] = _with_block(written.get(name, whole), block, content())
    for name, text in written.items():
        path = DOCS / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            path.write_text(text, encoding="utf-8")
    if stale:
        print(f"docs: {'out of date' if check else 'wrote'} {', '.join(stale)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
