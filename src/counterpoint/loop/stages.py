"""The stages of a loop, in their order: each is a command with its words, what it reads and writes.

    round-1/  sample -> candidates.jsonl   score -> scored.jsonl   pairs -> pairs.jsonl
              train -> run/   evaluate -> evaluation.json
              answer -> held-out.jsonl   judge -> held-out-scored.jsonl

Where a recipe has ``first_sample``, the first model's candidates come from what it names, such as
a server. Round 0 is the first model, which is only evaluated. Where a recipe has no prompts that
are held out, no round has the last two.

Not here: whether a stage has to be done (``ledger``), doing it (``running``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from counterpoint.options.loop_options import FIRST, FIRST_SAMPLE, LoopRecipe, words_of

RUN, MERGED_RUN = "run", "run/merged"
CANDIDATES, SCORED, PAIRS = "candidates.jsonl", "scored.jsonl", "pairs.jsonl"
HELD_OUT, JUDGED = "held-out.jsonl", "held-out-scored.jsonl"
EVALUATION, WRITTEN = "evaluation.json", "completions.jsonl"
_OF_AN_ADAPTER = ("use_rslora", "use_dora")
_HOW_ASKED = (
    *("new_address", "api_key_env", "timeout", "retries", "concurrency"),
    *("judge_api_key_env", "judge_timeout", "judge_retries", "judge_concurrency"),
)
"""Options that say how a server is asked: what it answers does not depend on them."""

SETTINGS = ".settings.json"
"""At the end of the name of what a resumable file was made by."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of one round.

    Args:
        round: its number; 0 is the first model's.
        name: of what is done.
        words: the command, and what follows it.
        reads: files, folders and hub ids that decide what comes out, beside the words.
        writes: what comes out, by its path.
        beside: further files that it leaves.
        resumes: whether the command completes what a kill has left of it.
        launcher: words that start its processes; none for one process. What comes out does not
            depend on them but by rounding, and so they are not what a stage is known by.
    """

    round: int
    name: str
    words: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[Path, ...]
    beside: tuple[Path, ...] = ()
    resumes: bool = False
    launcher: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What it is called in the loop's folder."""
        return f"round-{self.round}/{self.name}"

    def known_by(self, words: Sequence[str]) -> list[str]:
        """Those of its words, or of earlier ones, that what comes out may depend on.

        Args:
            words: its own, or what they were.
        """
        moved = ("endpoint",) if "--new_address=true" in self.words else ()
        left = tuple(f"--{name}=" for name in (*_HOW_ASKED, *moved))
        return [word for word in words if not word.startswith(left)]


@dataclass(frozen=True, slots=True)
class LoopCourse:
    """What a loop is to do.

    Args:
        recipe: of its file.
        folder: of the loop.
        given: options of each stage's command, by the command; under ``first_sample`` those with
            which the first model is sampled from, and ``model``, its name there.
        named: what these options name: files, folders, hub ids.
        merges: whether a run's model is the merged one of its adapter.
    """

    recipe: LoopRecipe
    folder: Path
    given: Mapping[str, Mapping[str, object]]
    named: Mapping[str, Sequence[str]]
    merges: bool = False

    def round_folder(self, number: int) -> Path:
        """Where a round lies."""
        return self.folder / f"round-{number}"

    def model(self, number: int) -> str:
        """The model that a round gives; 0 is the first one."""
        if not number:
            return str(self.recipe.model)
        return str(self.round_folder(number) / (MERGED_RUN if self.merges else RUN))

    def stages(self) -> Iterator[Stage]:
        """Everything that is to be done, in order."""
        yield from self._judged(0)
        for number in range(1, self.recipe.rounds + 1):
            yield self._sample(number)
            yield self._score(number, "score", CANDIDATES, SCORED)
            yield self._pairs(number)
            yield self._train(number)
            yield from self._judged(number)

    def _sample(self, number: int) -> Stage:
        recipe = self.recipe
        if number > 1 and recipe.sample_from != FIRST:
            models = [self.model(number - 1), *recipe.beside]
            return self._drawn(number, "sample", models, recipe.prompts, CANDIDATES)
        of = FIRST_SAMPLE if FIRST_SAMPLE in self.given else "sample"
        first = str(self.given[of].get("model") or self.model(0))
        return self._drawn(
            number, "sample", (first, *recipe.beside), recipe.prompts, CANDIDATES, of
        )

    def _drawn(
        self,
        number: int,
        name: str,
        models: Sequence[str],
        prompts: Sequence[str],
        file: str,
        of: str = "sample",
    ) -> Stage:
        out = self.round_folder(number) / file
        # what is held out is drawn by the same numbers in every round, so that rounds compare
        seed = seed_of(self.recipe.seed, number if name == "sample" else 0, name)
        own = {"prompts": list(prompts), "out": str(out), "seed": seed}
        given = {key: value for key, value in self.given[of].items() if key != "model"}
        return Stage(
            number,
            name,
            ("sample", *models, *words_of(own), *words_of(given)),
            (*models, *prompts, *self.named[of]),
            (out,),
            (_settings(out),),
            resumes=True,
        )

    def _score(self, number: int, name: str, source: str, file: str) -> Stage:
        folder = self.round_folder(number)
        read, out = folder / source, folder / file
        words = words_of({"out": str(out)})
        return Stage(
            number,
            name,
            ("score", str(read), *words, *words_of(self.given["score"])),
            (str(read), *self.named["score"]),
            (out,),
            (_settings(out),),
            resumes=True,
        )

    def _pairs(self, number: int) -> Stage:
        folder = self.round_folder(number)
        read, out = folder / SCORED, folder / PAIRS
        own: dict[str, object] = {"out": str(out)}
        given = dict(self.given["pairs"])
        if given.get("select") == "best_random" and "seed" not in given:
            own["seed"] = seed_of(self.recipe.seed, number, "pairs")
        return Stage(
            number,
            "pairs",
            ("pairs", str(read), *words_of(own), *words_of(given)),
            (str(read), *self.named["pairs"]),
            (out,),
            (_settings(out),),
        )

    def _train(self, number: int) -> Stage:
        recipe, run = self.recipe, self.round_folder(number) / RUN
        model = self.model(0 if recipe.train_from == FIRST else number - 1)
        first = 1 if recipe.accumulate else number
        pairs = [str(self.round_folder(n) / PAIRS) for n in range(first, number + 1)]
        own = {
            "model": model,
            "dataset": pairs,
            "output_dir": str(run),
            "seed": seed_of(recipe.seed, number, "train"),
            "resume": "auto",
        }
        return Stage(
            number,
            "train",
            ("train", *words_of(own), *words_of(self._of_training(number))),
            (model, *pairs, *self.named["train"]),
            (Path(self.model(number)),),
            (run,),
            resumes=True,
            launcher=recipe.launcher(),
        )

    def _of_training(self, number: int) -> Mapping[str, object]:
        """A round that begins with the adapter of the one before trains it, and adds no other."""
        given = self.given["train"]
        anew = self.merges or self.recipe.train_from == FIRST or given.get("create_new_adapter")
        if number == 1 or anew:
            return given
        return {
            name: value
            for name, value in given.items()
            if not name.startswith("lora_") and name not in _OF_AN_ADAPTER
        }

    def _judged(self, number: int) -> Iterator[Stage]:
        """What is found out about a round's model."""
        folder, model = self.round_folder(number), self.model(number)
        if "evaluate" in self.given:
            words = words_of({"out": str(folder), "overwrite": True})
            yield Stage(
                number,
                "evaluate",
                ("evaluate", model, *words, *words_of(self.given["evaluate"])),
                (model, *self.named["evaluate"]),
                (folder / EVALUATION,),
                (folder / WRITTEN,),
            )
        if self.recipe.held_out:
            yield self._drawn(number, "answer", (model,), self.recipe.held_out, HELD_OUT)
            yield self._score(number, "judge", HELD_OUT, JUDGED)


def seed_of(seed: int, number: int, stage: str) -> int:
    """A seed of a stage's own, in [0, 2**31).

    Args:
        seed: the loop's.
        number: of the round.
        stage: its name.
    """
    digest = hashlib.sha256(f"{seed} {number} {stage}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _settings(path: Path) -> Path:
    return path.with_name(f"{path.name}{SETTINGS}")
