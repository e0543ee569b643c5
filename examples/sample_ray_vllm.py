"""Candidates by Ray Data and vLLM, on as many machines as Ray has.

    pip install 'ray[data,llm]>=2.49.1'
    python examples/sample_ray_vllm.py MODEL prompts.jsonl candidates.jsonl 8

It writes the file that ``counterpoint sample`` writes, by the same rules: a line a candidate, on
the disk as soon as it is there; a second start asks for what is missing alone.

Not tried on a cluster by us: neither Ray Data's LLM part nor vLLM is installed where our tests run.
They run this script with a stand-in for both. vLLM's seeds promise no equal texts between machines.
"""

import json
import sys
from pathlib import Path

from counterpoint.cli.prompt_rows import read_prompt_rows
from counterpoint.evaluation.candidate_file import open_candidates
from counterpoint.evaluation.chance import chance_by
from counterpoint.options.sample_options import SampleOptions

SETTINGS = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 256}
SEED = 0


def requests(rows, model, k, written):
    """What is missing, in columns that Arrow holds: a prompt of messages is JSON in them."""
    seen = {}
    for one in rows:
        asked = json.dumps(one.prompt)
        for n in range(k):
            if (model, one.row, n) not in written:
                chance = chance_by(SEED, model, asked, seen.get(asked, 0), n)
                yield {"row": one.row, "candidate": n, "asked": asked, "seed": chance % 2**31}
        seen[asked] = seen.get(asked, 0) + 1


def for_vllm(request):
    """A request as the engine takes it; a text is continued as it is, without a template."""
    prompt = json.loads(request["asked"])
    what = {"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt}
    return {**request, **what, "sampling_params": {**SETTINGS, "seed": int(request["seed"])}}


def answered(row):
    """What is kept of an answer."""
    count = int(row["num_generated_tokens"])
    return {
        **{name: row[name] for name in ("row", "candidate")},
        "text": row["generated_text"],
        "tokens": count,
        "ended": count < SETTINGS["max_tokens"],
    }


def main(model, prompts, out, k=8):
    """Draw what the file lacks."""
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    rows = read_prompt_rows(SampleOptions(prompts=[prompts]))
    kinds = {type(one.prompt) for one in rows}
    if len(kinds) > 1:
        sys.exit("some prompts are text and some are messages; draw to one kind at a time")
    config = vLLMEngineProcessorConfig(
        model_source=model,
        concurrency=1,  # copies of the model: as many as there are GPUs for
        batch_size=64,
        chat_template_stage=kinds == {list},
    )
    process = build_processor(config, preprocess=for_vllm, postprocess=answered)
    settings = {**SETTINGS, "seed": SEED, "prompts": [one.prompt for one in rows]}
    with open_candidates(Path(out), settings) as file:
        file.admit(model, {"engine": "ray and vllm"})
        missing = list(requests(rows, model, k, file.written))
        if not missing:
            return
        for done in process(ray.data.from_items(missing)).iter_rows():
            row, number = int(done["row"]), int(done["candidate"])
            candidate = {
                "prompt": rows[row].prompt,
                "text": done["text"],
                "model": model,
                "row": row,
                "candidate": number,
                "tokens": int(done["tokens"]),
                "ended": bool(done["ended"]),
                **rows[row].kept,
            }
            file.append([candidate])


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:5]))
