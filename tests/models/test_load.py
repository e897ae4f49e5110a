"""Model folders as they come: incomplete, damaged, or wanting to run something."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from luthier.config.schema import ModelConfig
from luthier.core.errors import ModelError
from luthier.models.aliases import ALIASES
from luthier.models.device import place
from luthier.models.inspect import check_folder, check_safetensors
from luthier.models.load import load_model, load_tokenizer, resolve


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny, tmp_path / "model")
    return tmp_path / "model"


def refusal(folder: Path, **options: bool) -> ModelError:
    with pytest.raises(ModelError) as caught:
        check_folder(folder, **{"allow_remote_code": False, "allow_pickle": False, **options})
    return caught.value


def test_without_tokenizer(copy: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    assert refusal(copy).code == "model_no_tokenizer"


def test_without_config(copy: Path) -> None:
    (copy / "config.json").unlink()
    assert "has no config.json; there are:" in str(refusal(copy))


@pytest.mark.parametrize("how", ["short", "header", "size", "empty"])
def test_damaged_weights_are_found_before_loading(copy: Path, how: str) -> None:
    path = copy / "model.safetensors"
    raw = path.read_bytes()
    damaged = {"short": raw[:-1], "header": raw[:8] + b"x" * 40 + raw[48:], "size": b"\xff" * 8 + raw[8:], "empty": b""}
    path.write_bytes(damaged[how])
    error = refusal(copy)
    assert error.code == "model_damaged"
    assert "model.safetensors is damaged" in str(error)


def test_shape_that_lies(copy: Path) -> None:
    path = copy / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    name = next(n for n in header if n != "__metadata__")
    header[name]["shape"][0] += 1
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])
    with pytest.raises(ModelError, match="damaged"):
        check_safetensors(path)


def test_missing_shard(copy: Path) -> None:
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00002.safetensors"}}))
    assert "names model-00002.safetensors, which is not in" in str(refusal(copy))


def test_pickle_is_refused_and_read_when_allowed(copy: Path, tiny: Path) -> None:
    from safetensors.torch import load_file

    weights = load_file(copy / "model.safetensors")
    torch.save(weights, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    error = refusal(copy)
    assert (error.code, error.exit_code) == ("model_pickle", 2)
    config = ModelConfig(model_name_or_path=str(copy), allow_pickle=True, dtype="float32")
    loaded = load_model(resolve(str(copy)), config, place(config))
    original = load_model(resolve(str(tiny)), config, place(config))
    for (name, a), (_, b) in zip(loaded.named_parameters(), original.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_hostile_pickle_does_not_run(copy: Path, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "pwned",))

    torch.save({"x": Hostile()}, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    config = ModelConfig(model_name_or_path=str(copy), allow_pickle=True, dtype="float32")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(resolve(str(copy)), config, place(config))
    assert not (tmp_path / "pwned").exists()


def test_own_code_is_refused_unless_allowed(copy: Path, tmp_path: Path) -> None:
    (copy / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((copy / "config.json").read_text())
    own = {**config, "model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}
    (copy / "config.json").write_text(json.dumps(own))
    error = refusal(copy)
    assert error.code == "model_remote_code"
    code = (copy / "modeling_own.py").read_bytes()
    assert f"modeling_own.py ({len(code)} bytes, sha256 {hashlib.sha256(code).hexdigest()})" in str(error)
    assert "'own' is not known" in str(error)
    settings = ModelConfig(model_name_or_path=str(copy))
    with pytest.raises(ModelError, match="wants to run its own code"):
        load_tokenizer(resolve(str(copy)), settings)
    with pytest.raises(ModelError, match="wants to run its own code"):
        load_model(resolve(str(copy)), settings, place(settings))
    assert not (tmp_path / "ran").exists()
    check_folder(copy, allow_remote_code=True, allow_pickle=False)


@pytest.mark.parametrize("allowed", [True, False])
def test_own_code_of_a_known_architecture_never_runs(copy: Path, tmp_path: Path, allowed: bool) -> None:
    (copy / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((copy / "config.json").read_text())
    own = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.Own"}
    (copy / "config.json").write_text(json.dumps({**config, "auto_map": own}))
    settings = ModelConfig(model_name_or_path=str(copy), allow_remote_code=allowed, dtype="float32")
    assert type(load_model(resolve(str(copy)), settings, place(settings))).__name__ == "LlamaForCausalLM"
    assert not (tmp_path / "ran").exists()


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither a folder .* did you mean 'smollm2-135m'"):
        resolve("smolm2-135m")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelError, match="is a file; expected a model folder, GGUF file"):
        resolve(str(tmp_path / "file"))
    with pytest.raises(ModelError, match="model nobody/nothing cannot be loaded|tokenizer of nobody/nothing"):
        load_tokenizer(resolve("nobody/nothing"), ModelConfig(model_name_or_path="nobody/nothing"))


def test_slow_bfloat16_falls_back_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.models import device

    config = ModelConfig(model_name_or_path="m", dtype="bfloat16", device="cpu")
    monkeypatch.setattr(device, "has_fast_bfloat16", lambda: False)
    slow = place(config)
    assert slow.dtype == torch.float32
    assert "neither avx512_bf16 or amx_bf16, so bfloat16 would be slower" in slow.reason
    monkeypatch.setattr(device, "has_fast_bfloat16", lambda: True)
    assert place(config).dtype == torch.bfloat16
    learns = place(config, base_learns=True)
    assert (learns.dtype, learns.autocast) == (torch.float32, torch.bfloat16)


def test_aliases_are_known_on_this_machine() -> None:
    from luthier.models.aliases import where

    assert "package" in where("smollm2-135m")
    assert ALIASES["smollm2-135m"].hub == "HuggingFaceTB/SmolLM2-135M-Instruct"
