"""A script of conversations, as users write it for Unsloth: only the import lines are ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from helpers import make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_folder("llama", tmp_path_factory.mktemp("chat") / "Tiny-1B-Instruct"))


@pytest.fixture
def dataset() -> Dataset:
    chats = [
        [
            {"from": "human", "value": f"What is {i} + {i}?"},
            {"from": "gpt", "value": f"It is {2 * i} 🙂"},
            {"from": "human", "value": "Sure?"},
            {"from": "gpt", "value": "Yes."},
        ]
        for i in range(12)
    ]
    return Dataset.from_dict({"conversations": chats, "source": ["made"] * 12, "score": [1.0] * 12})


@pytest.mark.slow
def test_conversational_finetuning(folder: str, dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import DataCollatorForSeq2Seq, TextStreamer, TrainingArguments
    from trl import SFTTrainer

    from luthier import FastLanguageModel, is_bfloat16_supported
    from luthier.chat_templates import get_chat_template, standardize_sharegpt, train_on_responses_only

    max_seq_length = 256
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=folder, max_seq_length=max_seq_length, dtype=None, load_in_4bit=True
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
    tokenizer = get_chat_template(tokenizer, chat_template="qwen-2.5")

    def formatting_prompts_func(examples: dict[str, Any]) -> dict[str, Any]:
        convos = examples["conversations"]
        texts = [tokenizer.apply_chat_template(convo, tokenize=False, add_generation_prompt=False) for convo in convos]
        return {"text": texts}

    dataset = standardize_sharegpt(dataset)
    dataset = dataset.map(formatting_prompts_func, batched=True)
    trainer = SFTTrainer(
        model=model,
        tokenizer=tokenizer,
        train_dataset=dataset,
        dataset_text_field="text",
        max_seq_length=max_seq_length,
        data_collator=DataCollatorForSeq2Seq(tokenizer=tokenizer),
        dataset_num_proc=2,
        packing=False,
        args=TrainingArguments(
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            warmup_steps=5,
            max_steps=2,
            learning_rate=2e-4,
            fp16=not is_bfloat16_supported(),
            bf16=is_bfloat16_supported(),
            logging_steps=1,
            optim="adamw_8bit",
            weight_decay=0.01,
            lr_scheduler_type="linear",
            seed=3407,
            output_dir="outputs",
            report_to="none",
        ),
    )
    trainer = train_on_responses_only(
        trainer, instruction_part="<|im_start|>user\n", response_part="<|im_start|>assistant\n"
    )

    row = trainer.train_dataset[5]
    text = dataset[5]["text"]
    assert tokenizer.decode(row["input_ids"]) == text
    space = tokenizer(" ", add_special_tokens=False).input_ids[0]
    shown = tokenizer.decode([space if x == -100 else x for x in row["labels"]])
    assert [part.strip(" ") for part in shown.split("  ") if part.strip()] == [
        "It is 10 🙂<|im_end|>\n",
        "Yes.<|im_end|>\n",
    ]
    by_itself = train_on_responses_only(trainer)  # found in the template: the same rows
    assert by_itself.train_dataset[5]["labels"] == row["labels"]

    trainer_stats = trainer.train()
    assert trainer_stats.metrics["train_runtime"] > 0

    tokenizer = get_chat_template(tokenizer, chat_template="qwen-2.5")  # once more, as notebooks do
    FastLanguageModel.for_inference(model)
    messages = [{"role": "user", "content": "What is 2 + 2?"}]
    inputs = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_tensors="pt").to(
        "cuda"
    )
    outputs = model.generate(input_ids=inputs, max_new_tokens=8, use_cache=True, temperature=1.5, min_p=0.1)
    assert tokenizer.batch_decode(outputs)[0].startswith("<|im_start|>system\nYou are Qwen")
    capsys.readouterr()
    model.generate(input_ids=inputs, streamer=TextStreamer(tokenizer, skip_prompt=True), max_new_tokens=4,
                   use_cache=True, do_sample=False)  # fmt: skip
    assert capsys.readouterr().out.strip()
    model.save_pretrained("lora_model")
    tokenizer.save_pretrained("lora_model")
    _, again = FastLanguageModel.from_pretrained("lora_model", max_seq_length=max_seq_length, load_in_4bit=True)
    assert again.chat_template == tokenizer.chat_template


def test_sharegpt_mapping_for_answers_alone(folder: str) -> None:
    from luthier import FastLanguageModel
    from luthier.chat_templates import get_chat_template

    model, tokenizer = FastLanguageModel.from_pretrained(folder, max_seq_length=128, load_in_4bit=False)
    tokenizer = get_chat_template(
        tokenizer,
        chat_template="chatml",
        mapping={"role": "from", "content": "value", "user": "human", "assistant": "gpt"},
        map_eos_token=True,
    )
    FastLanguageModel.for_inference(model)
    messages = [{"from": "human", "value": "Continue: 1, 1, 2, 3, 5, 8,"}]
    inputs = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_tensors="pt")
    outputs = model.generate(input_ids=inputs.to("cuda"), max_new_tokens=4, use_cache=True)
    wanted = "<|im_start|>user\nContinue: 1, 1, 2, 3, 5, 8,<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.batch_decode(outputs)[0].startswith(wanted)
    assert not Path("unsloth_compiled_cache").exists()
