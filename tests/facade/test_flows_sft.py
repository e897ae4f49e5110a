"""Whole scripts of supervised fine-tuning, as people write them, through TRL's own SFTTrainer."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

PROMPT = "### Instruction:\n{}\n\n### Input:\n{}\n\n### Response:\n{}"


@pytest.mark.parametrize(("asked", "given", "on"), [(False, {}, False), ("unsloth", {}, True),
                                                    (False, {"gradient_checkpointing": True}, True)])  # fmt: skip
def test_recomputing_under_a_trainer(tiny: Path, alpaca: Any, asked: Any, given: dict[str, Any], on: bool) -> None:
    from trl import SFTConfig, SFTTrainer

    from luthier import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(str(tiny), max_seq_length=128, load_in_4bit=False)
    model = FastLanguageModel.get_peft_model(model, r=4, use_gradient_checkpointing=asked)
    rows = alpaca.map(lambda row: {"text": row["output"]}, remove_columns=alpaca.column_names)
    args = SFTConfig(output_dir="outputs", report_to="none", max_steps=1, **given)
    trainer = SFTTrainer(model=model, tokenizer=tokenizer, train_dataset=rows, args=args)
    assert trainer.args.gradient_checkpointing is on


def losses(trainer: Any) -> list[float]:
    return [float(line["loss"]) for line in trainer.state.log_history if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize("load_in_4bit", [True, False])
def test_alpaca(tiny: Path, alpaca: Any, load_in_4bit: bool, capsys: pytest.CaptureFixture[str]) -> None:
    from luthier import FastLanguageModel, is_bfloat16_supported

    max_seq_length = 256
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(tiny),
        max_seq_length=max_seq_length,
        dtype=None,
        load_in_4bit=load_in_4bit,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=16,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        lora_alpha=16,
        lora_dropout=0,
        bias="none",
        use_gradient_checkpointing="unsloth",
        random_state=3407,
        use_rslora=False,
        loftq_config=None,
    )
    EOS_TOKEN = tokenizer.eos_token

    def formatting_prompts_func(examples: Any) -> Any:
        rows = zip(examples["instruction"], examples["input"], examples["output"], strict=True)
        return {"text": [PROMPT.format(*row) + EOS_TOKEN for row in rows]}

    dataset = alpaca.map(formatting_prompts_func, batched=True)

    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=model,
        tokenizer=tokenizer,
        train_dataset=dataset,
        dataset_text_field="text",
        max_seq_length=max_seq_length,
        packing=False,
        args=SFTConfig(
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            warmup_steps=1,
            max_steps=6,
            learning_rate=2e-2,
            fp16=not is_bfloat16_supported(),
            bf16=is_bfloat16_supported(),
            logging_steps=1,
            optim="adamw_8bit",
            weight_decay=0.001,
            lr_scheduler_type="linear",
            seed=3407,
            output_dir="outputs",
            report_to="none",
        ),
    )
    trainer_stats = trainer.train()
    assert trainer_stats.metrics["train_runtime"] > 0
    assert losses(trainer)[-1] < losses(trainer)[0] - 0.1

    FastLanguageModel.for_inference(model)
    inputs = tokenizer([PROMPT.format("say tea", "", "")], return_tensors="pt").to("cuda")
    outputs = model.generate(**inputs, max_new_tokens=12, use_cache=True)
    assert tokenizer.batch_decode(outputs)[0].startswith("### Instruction:\nsay tea")

    from transformers import TextStreamer

    _ = model.generate(**inputs, streamer=TextStreamer(tokenizer), max_new_tokens=12)
    assert "say tea" in capsys.readouterr().out

    model.save_pretrained("lora_model")
    tokenizer.save_pretrained("lora_model")
    model.save_pretrained_merged("merged", tokenizer, save_method="merged_16bit")
    again, tokenizer = FastLanguageModel.from_pretrained(
        model_name="lora_model", max_seq_length=max_seq_length, dtype=None, load_in_4bit=load_in_4bit
    )
    FastLanguageModel.for_inference(again)
    assert torch.equal(again.generate(**inputs, max_new_tokens=12, use_cache=True), outputs)

    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert AutoPeftModelForCausalLM.from_pretrained("lora_model")(**inputs).logits.isfinite().all()
    merged = AutoModelForCausalLM.from_pretrained("merged", dtype=torch.float32)
    assert AutoTokenizer.from_pretrained("merged").eos_token == EOS_TOKEN
    wanted, found = model(**inputs).logits.float(), merged(**inputs).logits
    assert (wanted - found).abs().max() < 0.05 * wanted.abs().max()

    if not load_in_4bit:
        made = model.save_pretrained_gguf("model", tokenizer)
        assert Path(made["gguf_files"][0]).is_file()


@pytest.mark.slow
def test_mix_of_thoughts_and_chats(tiny: Path) -> None:
    import pandas as pd
    from datasets import Dataset

    from luthier import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(model_name=str(tiny), max_seq_length=256, load_in_4bit=True)
    thinking = "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think></think>' }}{% endif %}"
    tokenizer.chat_template += "{% if add_generation_prompt %}" + thinking + "{% endif %}"
    model = FastLanguageModel.get_peft_model(
        model, r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], lora_alpha=8, lora_dropout=0,
        bias="none", use_gradient_checkpointing="unsloth", random_state=3407, use_rslora=False, loftq_config=None,
    )  # fmt: skip
    solved = [
        [{"role": "user", "content": f"{i} + {i}"}, {"role": "assistant", "content": f"<think>twice</think>{2 * i}"}]
        for i in range(8)
    ]
    chats = [[{"role": "user", "content": "tea?"}, {"role": "assistant", "content": f"yes {i}"}] for i in range(6)]
    reasoning_conversations = tokenizer.apply_chat_template(solved, tokenize=False)
    non_reasoning_conversations = tokenizer.apply_chat_template(chats, tokenize=False)
    non_reasoning_subset = pd.Series(non_reasoning_conversations).sample(4, random_state=2407)
    data = pd.concat([pd.Series(reasoning_conversations), pd.Series(non_reasoning_subset)])
    data.name = "text"
    combined_dataset = Dataset.from_pandas(pd.DataFrame(data)).shuffle(seed=3407)

    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=model,
        tokenizer=tokenizer,
        train_dataset=combined_dataset,
        eval_dataset=None,
        args=SFTConfig(
            dataset_text_field="text", per_device_train_batch_size=2, gradient_accumulation_steps=2, warmup_steps=1,
            max_steps=4, learning_rate=2e-2, logging_steps=1, optim="adamw_8bit", weight_decay=0.001,
            lr_scheduler_type="linear", seed=3407, report_to="none", padding_free=False,
        ),
    )  # fmt: skip
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]
    messages = [{"role": "user", "content": "3 + 3"}]
    ends = []
    for enable_thinking in (False, True):
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=enable_thinking
        )
        ends.append(text.endswith("<think></think>"))
        from transformers import TextStreamer

        _ = model.generate(
            **tokenizer(text, return_tensors="pt").to("cuda"), max_new_tokens=8, temperature=0.7, top_p=0.8, top_k=20,
            streamer=TextStreamer(tokenizer, skip_prompt=True),
        )  # fmt: skip
    assert ends == [True, False]
    assert model.training  # as the trainer left it


@pytest.mark.slow
def test_text_completion(tiny: Path, alpaca: Any) -> None:
    from luthier import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(model_name=str(tiny), max_seq_length=128)
    model = FastLanguageModel.get_peft_model(
        model, r=8, target_modules=["q_proj", "v_proj", "gate_proj"], lora_alpha=32, use_rslora=True, loftq_config=None
    )
    rows = alpaca.map(lambda rows: {"text": [text + tokenizer.eos_token for text in rows["output"]]}, batched=True)

    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=model,
        tokenizer=tokenizer,
        train_dataset=rows,
        dataset_text_field="text",
        max_seq_length=128,
        dataset_num_proc=1,
        args=SFTConfig(
            per_device_train_batch_size=4, max_steps=2, learning_rate=1e-2, warmup_ratio=0.1, report_to="none",
            output_dir="outputs", logging_steps=1, seed=3407,
        ),
    )  # fmt: skip
    trainer.train()

    from transformers import TextIteratorStreamer

    text_streamer = TextIteratorStreamer(tokenizer)
    FastLanguageModel.for_inference(model)
    inputs = tokenizer(["Once upon a time"], return_tensors="pt").to("cuda")
    generation_kwargs = dict(inputs, streamer=text_streamer, max_new_tokens=12, use_cache=True)
    thread = Thread(target=model.generate, kwargs=generation_kwargs)
    thread.start()
    pieces = list(text_streamer)
    thread.join()
    assert "".join(pieces).startswith("Once upon a time")
    assert not model.training


def test_inference_only(tiny: Path) -> None:
    from luthier import FastModel
    from luthier.chat_templates import get_chat_template

    model, tokenizer = FastModel.from_pretrained(model_name=str(tiny), max_seq_length=256, load_in_4bit=True)
    tokenizer = get_chat_template(
        tokenizer,
        chat_template="chatml",
        mapping={"role": "from", "content": "value", "user": "human", "assistant": "gpt"},
    )
    FastModel.for_inference(model)
    inputs = tokenizer.apply_chat_template(
        [{"from": "human", "value": "tea?"}], tokenize=True, add_generation_prompt=True, return_tensors="pt"
    ).to("cuda")
    outputs = model.generate(input_ids=inputs, max_new_tokens=8, use_cache=True, temperature=1.5, min_p=0.1)
    assert "tea?" in tokenizer.batch_decode(outputs)[0]


@pytest.mark.slow
def test_full_finetuning(tiny: Path, alpaca: Any) -> None:
    from luthier import FastModel

    model, tokenizer = FastModel.from_pretrained(model_name=str(tiny), max_seq_length=128, full_finetuning=True)
    assert FastModel.get_peft_model(model, r=8, finetune_vision_layers=False) is model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = alpaca.map(lambda row: {"text": row["output"] + tokenizer.eos_token})

    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=model,
        tokenizer=tokenizer,
        train_dataset=rows,
        args=SFTConfig(
            dataset_text_field="text", per_device_train_batch_size=4, max_steps=4, learning_rate=3e-3, report_to="none",
            output_dir="outputs", logging_steps=1, lr_scheduler_type="constant",
        ),
    )  # fmt: skip
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []
    model.save_pretrained("whole")
    tokenizer.save_pretrained("whole")

    from transformers import AutoModelForCausalLM

    inputs = tokenizer("tea", return_tensors="pt")
    plain = AutoModelForCausalLM.from_pretrained("whole", dtype=torch.float32)
    assert torch.allclose(plain(**inputs).logits, model.eval()(**inputs).logits, atol=1e-4)
    assert Path(model.save_pretrained_gguf("gguf", tokenizer)["gguf_files"][0]).is_file()
