"""Quantised weights under an adapter: exact over splits, never changed, or refused with a code."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, TrainerCallback

from counterpoint import CPOConfig, CPOTrainer
from counterpoint.errors import ConfigError, CounterpointError, ModelError, SetupError
from counterpoint.models.loading import load_model
from counterpoint.models.quantized import prepare_quantized, prove, quantized_layers
from counterpoint.models.weights import WeightsPolicy
from counterpoint.monitor.checksum import checksum
from counterpoint.tensor_parts import entries_of, parts_of, tensor_bytes
from tests.models_on_the_spot import make_model
from tests.steps import GradientCamera, distance, random_pairs, train_watched

peft = pytest.importorskip("peft")
bitsandbytes = pytest.importorskip("bitsandbytes", reason="the extra [quantized] is not installed")

OPTIONS = ("load_in_4bit", "load_in_8bit")
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
SHAPES = ("llama", "qwen2")
TRANSLATORS = ("t5", "nllb")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Models of both shapes, saved in float32."""
    made = {}
    for shape in (*SHAPES, "qwen2_tied"):
        made[shape] = tmp_path_factory.mktemp(shape)
        make_model(shape, **WIDE).save_pretrained(made[shape])
    for shape in TRANSLATORS:
        made[shape] = tmp_path_factory.mktemp(shape)
        make_model(shape).save_pretrained(made[shape])
    return made


def config(folder: Path, **options) -> CPOConfig:
    return CPOConfig(output_dir=str(folder), use_cpu=True, save_strategy="no", **options)


def loaded(source: Path, option: str, folder: Path, **options):
    args = config(folder, **{option: True}, **options)
    return load_model(str(source), args, WeightsPolicy.of(args, adapter=True))


def lora(**changes):
    return peft.LoraConfig(**{"r": 4, "target_modules": "all-linear", **changes})


def adapted(source: Path, option: str, folder: Path):
    """A quantised model with an adapter whose second half is not 0, so that all of it trains."""
    torch.manual_seed(4)
    model = peft.get_peft_model(loaded(source, option, folder), lora())
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))
    return model


def every_bit(model: nn.Module) -> dict[str, list[bytes]]:
    """The bytes of all that does not train, scales included."""
    return {
        name: [part.detach().contiguous().view(torch.uint8).numpy().tobytes() for part in parts]
        for name, weight in model.named_parameters()
        if not weight.requires_grad
        for parts in [[part.reshape(-1) for part in parts_of(weight)]]
    }


@pytest.mark.parametrize(
    ("shape", "option"),
    [*zip(SHAPES, OPTIONS, strict=True), *zip(TRANSLATORS, OPTIONS, strict=True)],
)
def test_a_gradient_over_quantised_weights_is_the_same_for_every_split(
    folders, chatml_tokenizer, tmp_path, shape, option
):
    pairs = random_pairs(8)
    ways = {
        "8x1": {
            "per_device_train_batch_size": 8,
            "layout": "encoder-twice" if shape in TRANSLATORS else "padded",
        },
        "1x8": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
        "4x2": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        "tokens": {"per_device_train_batch_size": 8, "max_micro_batch_tokens": 60},
        "checkpointed": {"per_device_train_batch_size": 8, "gradient_checkpointing": True},
    }
    found = {}
    for name, way in ways.items():
        model = adapted(folders[shape], option, tmp_path)
        before = every_bit(model)
        (found[name],), _ = train_watched(
            model, chatml_tokenizer, pairs, tmp_path / name, **{option: True, **way}
        )
        assert every_bit(model) == before, name
    assert all(bool(g.abs().max() > 0) for g in found["8x1"].values())
    assert {name: distance(found["8x1"], one) for name, one in found.items()} == pytest.approx(
        dict.fromkeys(found, 0.0), abs=1e-5
    )


def as_plain(model: nn.Module) -> nn.Module:
    """The same model over the weights that the codes stand for."""
    for name, layer in list(quantized_layers(model)):
        with torch.no_grad():
            bias, layer.bias = layer.bias, None
            weight = layer(torch.eye(layer.in_features)).T.contiguous()
        plain = nn.Linear(*weight.shape[::-1], bias=bias is not None)
        plain.weight, plain.bias = nn.Parameter(weight, requires_grad=False), bias
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, plain)
    return model


DRIFT = {"kind": "kl_drift", "bound": 1e-3, "rate": 2000.0, "start": 1.0}


@pytest.mark.parametrize("option", OPTIONS)
def test_steps_and_drift_are_those_over_the_weights_that_the_codes_stand_for(
    folders, chatml_tokenizer, tmp_path, option
):
    """The drift is measured from the initial policy, whose pass runs over the same codes."""
    options = {"constraints": [DRIFT], "optim": "sgd", "learning_rate": 0.03}
    ways = {
        "quantised": ({"per_device_train_batch_size": 8}, {option: True}),
        "one by one": (
            {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
            {option: True},
        ),
        "plain": ({"per_device_train_batch_size": 8, "layout": "padded"}, {}),
    }
    seen = {}
    for name, (way, how) in ways.items():
        model = adapted(folders["llama"], option, tmp_path)
        model = model if how else as_plain(model)
        seen[name], trainer = train_watched(
            model, chatml_tokenizer, random_pairs(16), tmp_path / name, **options, **way, **how
        )
        lines = [line for line in trainer.state.log_history if "loss" in line]
        seen[f"{name}, drift"] = [line["constraints/kl_drift/value"] for line in lines]
    assert seen["quantised, drift"][0] == 0.0
    assert seen["quantised, drift"][1] > 1e-4
    for other in ("one by one", "plain"):
        # of some thousand roundings, what is left of logits of 1 is squared (test_drift)
        assert seen[f"{other}, drift"] == pytest.approx(seen["quantised, drift"], rel=1e-4)
        first, then = map(distance, seen["quantised"], seen[other])
        assert first < 1e-5
        assert then < 1e-4


class TestWeightsThatAnEvaluationPacks:
    """bitsandbytes does it on CPUs with AVX512-BF16; any other is told here that it is one."""

    def told(self, model: nn.Module) -> nn.Module:
        for layer in model.modules():
            if hasattr(layer, "support_avx512bf16_for_cpu"):
                layer.support_avx512bf16_for_cpu = True
        return model

    @pytest.fixture(autouse=True)
    def kernel(self, monkeypatch):
        """The product of such a CPU, which autograd knows nothing of."""
        product = torch.no_grad()(bitsandbytes.functional.gemv_4bit)
        monkeypatch.setattr(bitsandbytes.functional, "gemv_4bit", product)

    def test_without_care_the_gradient_is_zero(self, folders, tmp_path):
        """What the test below guards against, so that it can fail."""
        args = config(tmp_path, load_in_4bit=True)
        policy = WeightsPolicy.of(args, adapter=True)
        model = AutoModelForCausalLM.from_pretrained(folders["llama"], **policy.keywords(args))
        model = self.told(peft.get_peft_model(model, lora()))
        ids = torch.arange(3, 43)[None]
        before = every_bit(model)
        with torch.no_grad():
            model.eval()(ids)
        assert every_bit(model) != before
        name = "base_model.model.model.layers.1.mlp.up_proj.base_layer"
        layer = dict(quantized_layers(model))[name]
        with pytest.raises(ModelError, match=r"CP319 .* gives its input no gradient"):
            prove("up_proj", layer)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_proofs_evaluation_and_generation_leave_weights_and_gradient(
        self, folders, chatml_tokenizer, tmp_path, shape
    ):
        def step(name: str, **options):
            model = self.told(adapted(folders[shape], "load_in_4bit", tmp_path))
            before = every_bit(model)
            args = config(
                tmp_path / name,
                load_in_4bit=True,
                max_steps=2,
                logging_steps=1,
                max_grad_norm=0.0,
                per_device_train_batch_size=4,
                gradient_checkpointing=False,
                disable_tqdm=True,
                **options,
            )
            camera = GradientCamera()
            words = [
                {"prompt": f"What is {i} plus one?", "chosen": f" {i + 1}.", "rejected": " No."}
                for i in range(8)
            ]
            trainer = CPOTrainer(
                model=model,
                args=args,
                train_dataset=words,
                eval_dataset=words[:3],
                processing_class=chatml_tokenizer,
                callbacks=[camera],
            )
            if options:
                trainer.evaluate()
            trainer.train()
            trainer.model.eval()
            with torch.no_grad():
                trainer.model.generate(torch.arange(3, 9)[None], max_new_tokens=2)
            assert every_bit(model) == before
            return camera.pictures

        plain = step("plain")
        watched = step(
            "watched",
            eval_strategy="steps",
            eval_steps=1,
            generate_during_eval=True,
            eval_samples=2,
            eval_sample_tokens=3,
            constraints=[{"kind": "kl_drift", "bound": 0.5}],
            constraint_calibration=2,
        )
        assert len(plain) == len(watched) == 2
        assert all(bool(g.abs().max() > 0) for g in watched[0].values())
        # a constraint's multiplier begins at 0, so that the first gradient is the loss's alone
        assert distance(plain[0], watched[0]) < 1e-5


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(
    "precision", [{"bf16": True}, {"model_init_kwargs": {"dtype": "bfloat16"}}]
)
def test_a_bias_keeps_its_bits_where_products_have_another_precision(
    folders, tmp_path, option, precision
):
    """bitsandbytes' own layer of 4 bits rounds it in place, and computes the same."""
    args = config(tmp_path, **{option: True}, **precision)
    policy = WeightsPolicy.of(args, adapter=True)
    model = loaded(folders["qwen2"], option, tmp_path, **precision).requires_grad_(False)
    before, ids = every_bit(model), torch.arange(3, 33)[None]
    prepare_quantized(model, args, adapted=True)
    with torch.autocast("cpu", enabled="bf16" in precision):
        ours = model(ids).logits
    assert every_bit(model) == before
    if option == "load_in_4bit":
        stock = AutoModelForCausalLM.from_pretrained(folders["qwen2"], **policy.keywords(args))
        stock.requires_grad_(False)
        with torch.autocast("cpu", enabled="bf16" in precision):
            assert torch.equal(stock.train()(ids).logits, ours)
        assert every_bit(stock) != before


@pytest.mark.parametrize("option", OPTIONS)
def test_a_run_by_name_learns_and_its_adapter_is_opened_by_peft(
    folders, chatml_tokenizer, tmp_path, real_data, option
):
    with gzip.open(real_data / "hh-rlhf-harmless-base-test.jsonl.gz", "rt") as file:
        rows = [json.loads(next(file)) for _ in range(8)]
    args = config(
        tmp_path / "run",
        **{option: True},
        max_length=96,
        truncation="prompt_start",
        num_train_epochs=4,
        per_device_train_batch_size=4,
        gradient_checkpointing=True,
        learning_rate=5e-3,
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer = CPOTrainer(
        model=str(folders["qwen2_tied"]),
        args=args,
        train_dataset=rows,
        processing_class=chatml_tokenizer,
        peft_config=lora(),
    )
    before = every_bit(trainer.model)
    trainer.train()
    trainer.save_model()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < 0.9 * losses[0]
    assert every_bit(trainer.model) == before
    saved = {path.name for path in (tmp_path / "run").iterdir()}
    assert "adapter_model.safetensors" in saved
    assert "model.safetensors" not in saved
    opened = peft.PeftModel.from_pretrained(
        loaded(folders["qwen2_tied"], option, tmp_path), str(tmp_path / "run")
    )
    prepare_quantized(opened, args, adapted=True)
    ids = torch.arange(3, 33)[None]
    with torch.no_grad():
        theirs, ours = opened(ids).logits, trainer.model.eval()(ids).logits
    assert torch.equal(theirs, ours)


@pytest.mark.parametrize("option", OPTIONS)
def test_a_run_resumed_over_quantised_weights_is_the_same_run(
    folders, chatml_tokenizer, tmp_path, option
):
    def trainer(folder: Path, source: Path = folders["llama"]):
        args = CPOConfig(
            output_dir=str(folder),
            use_cpu=True,
            **{option: True},
            per_device_train_batch_size=2,
            learning_rate=1e-3,
            disable_tqdm=True,
            save_steps=2,
            max_steps=4,
        )
        return CPOTrainer(
            model=str(source),
            args=args,
            train_dataset=random_pairs(8),
            processing_class=chatml_tokenizer,
            peft_config=lora(),
        )

    class Killed(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    whole, part = trainer(tmp_path / "whole"), trainer(tmp_path / "part")
    whole.train()
    part.add_callback(Killed())
    with pytest.raises(KeyboardInterrupt):
        part.train()
    resumed = trainer(tmp_path / "part")
    resumed.train(resume_from_checkpoint=True)
    ends = [dict(one.model.named_parameters()) for one in (whole, resumed)]
    assert all(torch.equal(weight, ends[1][name]) for name, weight in ends[0].items())
    if option == "load_in_8bit":
        return
    # the base is told by its quantised weights and their scales
    other = make_model("llama", seed=3, **WIDE)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(SetupError, match=r"CP513 .*base model's weights"):
        trainer(tmp_path / "part", tmp_path / "other").train(resume_from_checkpoint=True)


@pytest.mark.parametrize("option", OPTIONS)
def test_quantised_weights_without_an_adapter_are_evaluated(
    folders, chatml_tokenizer, tmp_path, option
):
    """transformers would refuse them, as if they were to train."""
    pairs = random_pairs(4)
    model = loaded(folders["llama"], option, tmp_path)
    args = config(tmp_path, **{option: True}, disable_tqdm=True)
    made = {"args": args, "processing_class": chatml_tokenizer}
    found = CPOTrainer(model=model, **made).evaluate(pairs)
    args = config(tmp_path, disable_tqdm=True)
    plain = CPOTrainer(model=as_plain(model), **{**made, "args": args}).evaluate(pairs)
    assert found["eval_loss"] == pytest.approx(plain["eval_loss"], rel=1e-5)


def test_an_encoder_decoder_by_name_learns_and_its_adapter_is_opened_by_peft(
    folders, chatml_tokenizer, tmp_path
):
    """The layers that T5 computes in float32 stay as they are, and train under the adapter, too."""
    args = config(
        tmp_path / "run",
        load_in_4bit=True,
        max_steps=30,
        per_device_train_batch_size=8,
        learning_rate=0.1,
        logging_steps=1,
        disable_tqdm=True,
        constraints=[{**DRIFT, "bound": 0.5}],
    )
    trainer = CPOTrainer(
        model=str(folders["t5"]),
        args=args,
        train_dataset=random_pairs(8),
        processing_class=chatml_tokenizer,
        peft_config=lora(task_type="SEQ_2_SEQ_LM"),
    )
    layers = dict(quantized_layers(trainer.model))
    wide = [n for n, _ in trainer.model.named_modules() if n.endswith(("wo.base_layer", "lm_head"))]
    assert len(wide) == 2 * 2 + 1
    assert not layers.keys() & set(wide)
    assert {name.split(".")[-2] for name in layers} == {"q", "k", "v", "o", "wi"}
    before = every_bit(trainer.model)
    trainer.train()
    trainer.save_model()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < losses[0] - 0.3
    assert every_bit(trainer.model) == before
    opened = peft.PeftModel.from_pretrained(
        loaded(folders["t5"], "load_in_4bit", tmp_path), str(tmp_path / "run")
    ).eval()
    ids = {"input_ids": torch.arange(3, 33)[None], "decoder_input_ids": torch.arange(9)[None]}
    with torch.no_grad():
        assert torch.equal(opened(**ids).logits, trainer.model.eval()(**ids).logits)


class TestRefused:
    @pytest.mark.parametrize("option", OPTIONS)
    def test_without_an_adapter(self, folders, chatml_tokenizer, tmp_path, option):
        made = {"train_dataset": random_pairs(2), "processing_class": chatml_tokenizer}
        with pytest.raises(ModelError, match=f"CP316 {option} .*lora_r"):
            CPOTrainer(model=str(folders["llama"]), args=config(tmp_path, **{option: True}), **made)
        with pytest.raises(ModelError, match=r"CP316 .*lora_r"):
            CPOTrainer(
                model=loaded(folders["llama"], option, tmp_path), args=config(tmp_path), **made
            )

    def test_an_option_beside_a_model_that_is_not_quantised(
        self, models, chatml_tokenizer, tmp_path
    ):
        with pytest.raises(ConfigError, match=r"CP104 load_in_8bit .*pass its name"):
            CPOTrainer(
                model=models("llama"),
                args=config(tmp_path, load_in_8bit=True),
                train_dataset=random_pairs(2),
                processing_class=chatml_tokenizer,
                peft_config=lora(),
            )

    @pytest.mark.parametrize(
        "options",
        [
            {"load_in_4bit": True, "load_in_8bit": True},
            {"load_in_4bit": True, "stochastic_rounding": True},
        ],
    )
    def test_options_that_contradict_each_other(self, tmp_path, options):
        with pytest.raises(ConfigError, match="CP104"):
            config(tmp_path, **options)

    def test_twice_quantised(self, folders, tmp_path):
        given = {"quantization_config": {"load_in_8bit": True, "quant_method": "bitsandbytes"}}
        with pytest.raises(ConfigError, match="CP104 load_in_4bit and the quantization_config"):
            loaded(folders["llama"], "load_in_4bit", tmp_path, model_init_kwargs=given)

    def test_weights_of_which_each_rank_would_quantise_its_own_part(
        self, folders, tmp_path, monkeypatch
    ):
        given = {"distributed_config": {"fsdp_size": 2}}
        with pytest.raises(ConfigError, match="CP104 load_in_4bit and the distributed_config"):
            loaded(folders["llama"], "load_in_4bit", tmp_path, model_init_kwargs=given)
        monkeypatch.setattr("counterpoint.models.quantized.shards_at_load", lambda args: True)
        with pytest.raises(ConfigError, match=r"CP104 load_in_8bit and fsdp on CPUs"):
            loaded(folders["llama"], "load_in_8bit", tmp_path)

    def test_a_missing_package_names_the_command(self, folders, tmp_path, monkeypatch):
        monkeypatch.setattr("counterpoint.models.quantized.find_spec", lambda name: None)
        with pytest.raises(SetupError, match=r"CP502 load_in_4bit .*install .*bitsandbytes>="):
            loaded(folders["llama"], "load_in_4bit", tmp_path)


def test_codes_whose_type_the_model_rounds_an_input_to_are_refused(folders, tmp_path):
    """What a script can do, and nothing would raise: T5's layer would be given bytes."""
    model = loaded(folders["t5"], "load_in_4bit", tmp_path)
    # of a later block: a layer has the name of its first place
    feed, codes = model.encoder.block[0].layer[1].DenseReluDense, model.encoder.block[1].layer[0]
    feed.wo = codes.SelfAttention.o
    with pytest.raises(ModelError, match=r"CP319 .*wo is a .* rounds to the type of its codes"):
        prepare_quantized(model, config(tmp_path, load_in_4bit=True), adapted=True)


class _Codes(nn.Linear):
    """A layer of a stranger's, with a fault of choice."""

    def __init__(self, fault: str = "") -> None:
        super().__init__(16, 8, bias=False)
        codes = torch.randint(-9, 9, (8, 16), dtype=torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.fault = fault

    def forward(self, rows: Tensor) -> Tensor:
        weight = self.weight.float()
        if self.fault == "gradient":
            rows = rows.detach()
        elif self.fault == "rows":
            most = 4 * float(rows.detach().abs().mean())
            rows = rows.clamp(-most, most)
        elif self.fault == "evaluation" and not self.training:
            rows = rows.bfloat16().float()
        elif self.fault == "bytes" and not self.training:
            self.weight.data = self.weight.data.flip(0)
            weight = self.weight.float().flip(0)
        elif self.fault == "raises":
            raise RuntimeError("no kernel for this")
        return rows @ weight.T


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("gradient", "gives its input no gradient"),
        ("rows", "computes a row otherwise when other rows are beside it"),
        ("evaluation", "computes something else in evaluation than in training"),
        ("bytes", "has another gradient after an evaluation"),
        ("raises", "fails on a few rows: RuntimeError: no kernel for this"),
    ],
)
def test_a_layer_that_is_not_exact_is_refused_with_the_fact_that_is_missing(fault, words):
    with pytest.raises(ModelError, match=f"CP319 some.layer is a _Codes, which {words}"):
        prove("some.layer", _Codes(fault))
    prove("some.layer", _Codes())


def test_layers_of_torchao_are_exact():
    torchao = pytest.importorskip("torchao.quantization")
    model = make_model("llama", **WIDE).requires_grad_(False)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    layers = dict(quantized_layers(model))
    assert len(layers) == 15  # seven a layer, and the head
    for name, layer in layers.items():
        prove(name, layer)


@pytest.mark.parametrize("option", OPTIONS)
def test_scales_count_as_parts_of_a_weight(folders, tmp_path, option):
    model = loaded(folders["llama"], option, tmp_path)
    weight = model.model.layers[0].mlp.up_proj.weight
    assert entries_of(weight) == 64 * 128
    bits = 4 if option == "load_in_4bit" else 8
    assert 64 * 128 * bits // 8 < tensor_bytes(weight) < 64 * 128 * bits // 8 + 1600
    before = int(checksum(weight))
    scales = list(parts_of(weight))[1]
    scales.view(-1)[3] += 1
    assert int(checksum(weight)) != before


def test_a_model_that_comes_quantised_trains_by_its_name(folders, chatml_tokenizer, tmp_path):
    loaded(folders["qwen2"], "load_in_4bit", tmp_path).save_pretrained(tmp_path / "filed")
    trainer = CPOTrainer(
        model=str(tmp_path / "filed"),
        args=config(tmp_path / "run", max_steps=1, disable_tqdm=True),
        train_dataset=random_pairs(2),
        processing_class=chatml_tokenizer,
        peft_config=lora(),
    )
    trainer.train()
    assert len(dict(quantized_layers(trainer.model))) == 14
    with pytest.raises(ConfigError, match=r"CP104 the weights of .* are quantised in its files"):
        CPOTrainer(
            model=str(tmp_path / "filed"),
            args=config(tmp_path / "run", load_in_4bit=True),
            train_dataset=random_pairs(2),
            processing_class=chatml_tokenizer,
            peft_config=lora(),
        )


def test_a_quantised_head_computes_its_logits_itself(folders, chatml_tokenizer, tmp_path):
    """bitsandbytes leaves the head alone unless it is told otherwise; then it goes densely."""
    from transformers import BitsAndBytesConfig

    from counterpoint.forward.head import find_head, prove_head

    settings = BitsAndBytesConfig(
        load_in_8bit=True, llm_int8_threshold=0.0, llm_int8_skip_modules=["nothing"]
    )
    model = AutoModelForCausalLM.from_pretrained(
        folders["llama"], quantization_config=settings, dtype=torch.float32
    )
    assert "lm_head" in dict(quantized_layers(model))
    args = config(tmp_path / "run", max_steps=1, disable_tqdm=True)
    trainer = CPOTrainer(
        model=model,
        args=args,
        train_dataset=random_pairs(4),
        processing_class=chatml_tokenizer,
        peft_config=lora(),
    )
    trainer.train()
    head = prove_head(trainer.model, find_head(trainer.model), torch.arange(3, 20)[None])
    rows = torch.randn(5, 64)
    expected = head.module(rows).log_softmax(-1)[torch.arange(5), torch.arange(5)]
    assert torch.allclose(head.token_logps(rows, torch.arange(5))[0], expected, atol=1e-5)


def test_an_adapter_that_cannot_lie_on_quantised_weights_is_refused(
    folders, chatml_tokenizer, tmp_path
):
    with pytest.raises(CounterpointError, match="CP307"):
        CPOTrainer(
            model=str(folders["llama"]),
            args=config(tmp_path, load_in_4bit=True),
            train_dataset=random_pairs(2),
            processing_class=chatml_tokenizer,
            peft_config=lora(init_lora_weights="pissa"),
        )
