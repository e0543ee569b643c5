"""A model that is evaluated or that writes: in a trainer that does not train.

Not here: what is asked of it (``evaluate``, ``sample``).
"""

from __future__ import annotations

from dataclasses import replace

from counterpoint.cli.hub import hub_or_cache
from counterpoint.cli.parts import hide_token, hub_names, merge_model_options
from counterpoint.models.adapters import base_of, is_adapter, load_adapted, tokenizer_source
from counterpoint.models.loading import load_config, load_model, load_tokenizer
from counterpoint.models.weights import WeightsPolicy
from counterpoint.options.settings import Request
from counterpoint.trainer.trainer import CPOTrainer


def evaluating_trainer(source: str, request: Request) -> CPOTrainer:
    """A trainer that only evaluates.

    Args:
        source: hub id, folder or GGUF file of a model, or the folder of an adapter.
        request: options of a run that only evaluates.

    Raises:
        CounterpointError: CP3xx and CP5xx for what cannot be loaded.
    """
    run, config = request.run, request.config
    hide_token(config)
    adapter, given = is_adapter(source), config.model_init_kwargs
    if adapter:  # whose own files have no revision
        run = replace(run, model=base_of(source))
    with hub_or_cache([source, *hub_names(run)]):
        merge_model_options(run, config)
        if adapter:
            model = load_adapted(source, config)
        else:
            load_config(source, config)
            # weights that nobody trains keep the precision of their files
            model = load_model(source, config, WeightsPolicy.of(config, adapter=True))
        own = tokenizer_source(source) if adapter else source
        tokenizer = load_tokenizer(
            run.tokenizer or own,
            config,
            of_model=run.tokenizer is None,
            chat_template=run.chat_template,
        )
    config.model_init_kwargs = None  # the trainer refuses them beside a loaded model
    trainer = CPOTrainer(model=model, args=config, processing_class=tokenizer)
    config.model_init_kwargs = given
    return trainer
