"""A script that ends in Ollama, as users write it for Unsloth: only the import lines are ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from helpers import make_folder

from luthier.core.types import Message
from luthier.export.go_template import ollama_prompt

CHAT_TEMPLATE = """Below are some instructions that describe some tasks. Write responses that appropriately complete each request.

### Instruction:
{INPUT}

### Response:
{OUTPUT}

### Instruction:
{INPUT}

### Response:
{OUTPUT}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_folder("llama", tmp_path_factory.mktemp("ollama") / "Tiny-1B"))


@pytest.mark.slow
def test_from_columns_to_a_modelfile(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import TextStreamer
    from trl import SFTConfig, SFTTrainer

    from luthier import FastLanguageModel, apply_chat_template, standardize_sharegpt, to_sharegpt

    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=folder, max_seq_length=512, dtype=None, load_in_4bit=True
    )
    model = FastLanguageModel.get_peft_model(model, r=8, loftq_config=None)
    dataset: Any = Dataset.from_dict(
        {
            "name": [f"Passenger {i}" for i in range(8)],
            "age": [None if i % 2 else float(i) for i in range(8)],
            "survived": [i % 2 for i in range(8)],
        }
    )
    dataset = to_sharegpt(
        dataset,
        merged_prompt="Their name is {name}.[[\nTheir age is {age}.]]\nDid they survive?",
        conversation_extension=3,
        output_column_name="survived",
    )
    dataset = standardize_sharegpt(dataset)
    dataset = apply_chat_template(dataset, tokenizer=tokenizer, chat_template=CHAT_TEMPLATE)
    first = dataset[1]["text"]
    assert first.count("### Instruction:\nTheir name is") == first.count("### Response:\n") == 3
    assert "Passenger 1.\nDid they survive?" in first
    assert first.startswith("Below are some instructions")
    assert first.endswith("<|im_end|>")

    trainer = SFTTrainer(
        model=model,
        tokenizer=tokenizer,
        train_dataset=dataset,
        args=SFTConfig(
            dataset_text_field="text", max_length=512, per_device_train_batch_size=2, max_steps=1, optim="adamw_8bit",
            output_dir="outputs", report_to="none",
        ),
    )  # fmt: skip
    trainer.train()

    FastLanguageModel.for_inference(model)
    messages = [{"role": "user", "content": "Their name is Ada.\nDid they survive?"}]
    input_ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt").to("cuda")
    capsys.readouterr()
    streamer = TextStreamer(tokenizer, skip_prompt=True)
    _ = model.generate(input_ids, streamer=streamer, max_new_tokens=4, pad_token_id=tokenizer.eos_token_id)

    saved = model.save_pretrained_gguf("model", tokenizer)
    assert [Path(file).name for file in saved["gguf_files"]] == ["Tiny-1B.Q8_0.gguf"]
    assert Path("model/config.json").is_file()
    print(tokenizer._ollama_modelfile)
    written = Path(saved["modelfile_location"]).read_text()
    assert written.strip() in capsys.readouterr().out
    turns = [Message(role=m["role"], content=m["content"]) for m in dataset[1]["conversations"][:3]]
    template = written.split('TEMPLATE """')[1].split('"""')[0]
    wanted = tokenizer.apply_chat_template([t.as_dict() for t in turns], tokenize=False, add_generation_prompt=True)
    assert ollama_prompt(template, turns) == wanted
    assert first.startswith(wanted)
