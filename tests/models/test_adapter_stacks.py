"""Several adapters: merged below a new one, continued, found again from a run directory, switched by name."""

from pathlib import Path

import pytest
import torch
from helpers import losses, make_folder
from tunings import fresh, logits, stir

from luthier.config.load import load_config
from luthier.core.errors import ConfigError, ModelError
from luthier.core.types import Message, Sampling
from luthier.models.adapters import add_adapter, load_adapter, save_trained
from luthier.models.device import place
from luthier.models.load import find, load_for_inference, merge_in
from luthier.tuning.lora import Lora
from luthier.tuning.prompt import Prompt
from luthier.workflows.build import load_speaker
from luthier.workflows.export import export_model
from luthier.workflows.train import train

SETTINGS = {"max_steps": 2, "threads": 1, "per_device_train_batch_size": 2, "plot_loss": False, "dtype": "float32"}


def config_of(**settings):
    return load_config({**SETTINGS, **settings}).config


@pytest.fixture
def adapters(tiny: Path, tmp_path: Path) -> list[Path]:
    """Two LoRA adapters of the tiny model."""
    folders = []
    for rank in (2, 3):
        folders.append(tmp_path / f"rank{rank}")
        save_trained(stir(Lora(rank=rank).apply(fresh(tiny))), folders[-1], str(tiny))
    return folders


def merged(tiny: Path, folders: list[Path]):
    return merge_in(fresh(tiny), folders).eval()


@pytest.mark.parametrize("create", [True, False])
def test_a_run_on_a_stack_is_found_with_all_of_it(tiny, rows, adapters, tmp_path, create: bool) -> None:
    run = tmp_path / "run"
    train(config_of(
        model_name_or_path=str(tiny), adapter_name_or_path=",".join(map(str, adapters)), create_new_adapter=create,
        dataset=str(rows), output_dir=str(run), lora_rank=2, learning_rate=1e-2,
    ), quiet=True)  # fmt: skip
    config = config_of(model_name_or_path=str(run))
    below = adapters if create else adapters[:1]
    assert find(config.model).adapters == (*below, run)
    model, _ = load_for_inference(config.model, place(config.model))
    from peft import PeftModel

    by_hand = PeftModel.from_pretrained(merged(tiny, below), str(run)).eval()
    torch.testing.assert_close(logits(model), logits(by_hand), rtol=1e-5, atol=1e-5)
    # The base of the run, for comparisons, is what it began on.
    base, _ = load_for_inference(config.model, place(config.model), with_adapter=False)
    torch.testing.assert_close(logits(base), logits(merged(tiny, below)), rtol=1e-5, atol=1e-5)
    out = export_model(config_of(model_name_or_path=str(run), export_dir=str(tmp_path / "out")))[0].folder
    torch.testing.assert_close(logits(fresh(out)), logits(by_hand), rtol=1e-4, atol=1e-5)


def test_a_new_adapter_on_top_of_a_run(tiny, rows, tmp_path) -> None:
    """The first run is named as the model; its adapter is merged, and the loss goes on from there."""
    common = {"dataset": str(rows), "lora_rank": 2, "learning_rate": 1e-2}
    train(config_of(model_name_or_path=str(tiny), output_dir=str(tmp_path / "first"), **common), quiet=True)
    new = {"model_name_or_path": str(tmp_path / "first"), "create_new_adapter": True, **common}
    train(config_of(output_dir=str(tmp_path / "second"), **new), quiet=True)
    found = find(config_of(model_name_or_path=str(tmp_path / "second")).model)
    assert (found.base, found.adapters) == (str(tiny), (tmp_path / "first", tmp_path / "second"))
    full = {**new, "finetuning_type": "full", "lora_rank": None, "learning_rate": 1e-3}
    train(config_of(output_dir=str(tmp_path / "whole"), **full), quiet=True)
    assert losses(tmp_path / "whole")[1] == losses(tmp_path / "second")[1]
    with pytest.raises(ConfigError, match="set create_new_adapter: true to merge it first"):
        train(config_of(output_dir=str(tmp_path / "no"), **{**full, "create_new_adapter": False}), quiet=True)
    assert not (tmp_path / "no").exists()


def test_preference_training_on_a_stack_compares_with_what_it_began_on(tiny, pairs, adapters, tmp_path) -> None:
    """At the first step policy and reference are the same model, so the loss is log 2."""
    for create in (True, False):
        run = tmp_path / f"dpo{create}"
        train(config_of(
            model_name_or_path=str(tiny), adapter_name_or_path=",".join(map(str, adapters)), stage="dpo",
            create_new_adapter=create, dataset=str(pairs), output_dir=str(run), lora_rank=2,
        ), quiet=True)  # fmt: skip
        assert float.fromhex(losses(run)[1]) == pytest.approx(0.693147, abs=1e-5)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_reference_is_the_model_before_it_gave_a_part_away(tiny, pairs, tmp_path, init: str) -> None:
    settings = {"model_name_or_path": str(tiny), "stage": "dpo", "dataset": str(pairs), "lora_rank": 2,
                "tuning.init": init, "max_steps": 3, "save_steps": 1, "learning_rate": 1e-2}  # fmt: skip
    for when in (True, False):
        run = tmp_path / f"{init}{when}"
        train(config_of(output_dir=str(run), precompute_reference=when, **settings), quiet=True)
    first, second = losses(tmp_path / f"{init}True"), losses(tmp_path / f"{init}False")
    assert float.fromhex(first[1]) == pytest.approx(0.693147, abs=1e-5)
    for step, loss in first.items():
        assert float.fromhex(second[step]) == pytest.approx(float.fromhex(loss), rel=1e-4)
    run = tmp_path / "half"
    resume = str(tmp_path / f"{init}False" / "checkpoint-1")
    train(config_of(output_dir=str(run), precompute_reference=False, resume=resume, **settings), quiet=True)
    assert losses(run)[3] == second[3]


def test_what_cannot_be_merged_cannot_lie_below(tiny, rows, adapters, tmp_path) -> None:
    save_trained(Prompt(tokens=3).apply(fresh(tiny)), tmp_path / "prompt", str(tiny))
    names = f"{tmp_path / 'prompt'},{adapters[0]}"
    with pytest.raises(ModelError, match="prompt cannot be merged: a soft prompt is input, not weights"):
        train(config_of(
            model_name_or_path=str(tiny), adapter_name_or_path=names, dataset=str(rows), output_dir=str(tmp_path / "r")
        ), quiet=True)  # fmt: skip
    assert not (tmp_path / "r").exists()
    out = tmp_path / "new" / "merged"
    with pytest.raises(ModelError, match="cannot be merged"):
        export_model(config_of(model_name_or_path=str(tmp_path / "prompt"), export_dir=str(out)))
    assert not out.parent.exists()
    with pytest.raises(ModelError, match="holds no adapter"):
        find(config_of(model_name_or_path=str(tiny), adapter_name_or_path=str(tiny)).model)


def test_switching_by_name_while_answering(tiny, adapters) -> None:
    config = config_of(
        model_name_or_path=str(adapters[0]), more_adapters={"other": str(adapters[1])}, max_new_tokens=8, temperature=0
    )
    speaker = load_speaker(config)
    prompt = speaker.template.prompt([Message(role="user", content="say tea")])

    def answer() -> tuple[int, ...]:
        return speaker.engine.generate([prompt], Sampling(temperature=0, max_new_tokens=8))[0][0].tokens

    alone = [load_speaker(config_of(model_name_or_path=str(folder))) for folder in adapters]
    want = [s.engine.generate([prompt], Sampling(temperature=0, max_new_tokens=8))[0][0].tokens for s in alone]
    have = [answer()]
    speaker.use("other")
    have.append(answer())
    speaker.use("default")
    assert [*have, answer()] == [*want, want[0]]
    assert want[0] != want[1]
    with pytest.raises(ModelError, match="no adapter is called 'third'; there are: default, other"):
        speaker.use("third")


def test_embeddings_of_its_own_stand_beside_no_other_adapter_under_a_tied_head(tmp_path) -> None:
    """peft would leave the head with the first adapter."""
    folder = make_folder("llama_tied", tmp_path / "tied")
    for name in ("one", "two"):
        tuned = Lora(rank=2, modules_to_save=("embed_tokens",)).apply(fresh(folder))
        save_trained(tuned, tmp_path / name, str(folder))
    one = load_adapter(fresh(folder), tmp_path / "one", trainable=False)
    with pytest.raises(ModelError, match="two has embeddings of its own, .* it cannot stand beside another adapter"):
        add_adapter(one, tmp_path / "two", "two")
