"""SimPO with a LoRA adapter, on conversations, with an evaluation set.

    python examples/simpo_lora.py

The model is made here, so that it runs offline in seconds; for a real one give its name to
``CPOTrainer(model=...)`` and leave out ``processing_class``. Beta, margin and learning rate are
what SimPO's authors used for Llama-3-8B-Instruct (docs/objectives.md), except that an adapter
takes a larger learning rate than all weights do.
"""

from datasets import Dataset
from peft import LoraConfig
from transformers import ByT5Tokenizer, Qwen2Config, Qwen2ForCausalLM

from counterpoint import CPOConfig, CPOTrainer

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
COLOURS = ("red", "green", "blue", "yellow")


def conversations(things):
    """Polite answers preferred to short ones."""
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"What colour is the {thing}?"}],
                "chosen": [{"role": "assistant", "content": f"The {thing} is {colour}."}],
                "rejected": [{"role": "assistant", "content": colour}],
            }
            for thing in things
            for colour in COLOURS
        ]
    )


def main(output_dir="runs/simpo_lora"):
    config = Qwen2Config(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = TEMPLATE

    trainer = CPOTrainer(
        model=Qwen2ForCausalLM(config),
        args=CPOConfig(
            output_dir=output_dir,
            loss_type="simpo",
            beta=2.5,
            gamma_beta_ratio=0.55,
            cpo_alpha=0.0,  # pure SimPO; the default of 1.0 adds the NLL of the chosen side
            learning_rate=1e-2,
            per_device_train_batch_size=8,
            num_train_epochs=5,
            logging_steps=2,
            save_strategy="no",
        ),
        processing_class=tokenizer,
        train_dataset=conversations(["car", "house", "door", "boat"]),
        eval_dataset=conversations(["hat", "cup"]),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"),
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    trainer.save_model()  # the adapter alone
    print(
        f"eval_rewards/margins {before['eval_rewards/margins']:.2f} -> "
        f"{after['eval_rewards/margins']:.2f}"
    )
    return before, after


if __name__ == "__main__":
    main()
