"""Foreign layouts: the re-laid model computes what the architecture's own formulas compute."""

import json
import math
from pathlib import Path

import pytest
import torch
from helpers import VOCABULARY, byte_tokenizer, segment
from safetensors.torch import save_file
from torch.nn import functional as F

from luthier.config.schema import ModelConfig
from luthier.core.errors import ModelError
from luthier.data.pack import pack
from luthier.models.device import place
from luthier.models.foreign import foreign_of, needs_own_code
from luthier.models.inspect import check_folder
from luthier.models.load import load_model, put_kernels, resolve
from luthier.models.policy import Policy

HIDDEN, HEADS, KEYS, SIZE, INNER, LAYERS, EPS = 32, 4, 2, 8, 48, 2, 1e-5
LLAMA = {
    "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": KEYS, "rms_norm_eps": EPS, "max_position_embeddings": 512,
    "hidden_act": "silu", "bos_token_id": 256, "eos_token_id": 258, "pad_token_id": 256,
    "tie_word_embeddings": False,
}  # fmt: skip
CHATGLM = {
    "model_type": "chatglm", "padded_vocab_size": VOCABULARY, "hidden_size": HIDDEN, "ffn_hidden_size": INNER,
    "num_layers": LAYERS, "num_attention_heads": HEADS, "kv_channels": SIZE, "multi_query_attention": True,
    "multi_query_group_num": KEYS, "layernorm_epsilon": EPS, "seq_length": 512, "add_qkv_bias": True,
    "add_bias_linear": False, "rmsnorm": True, "original_rope": True, "rope_ratio": 4, "pad_token_id": 256,
    "apply_residual_connection_post_layernorm": False, "post_layer_norm": True, "eos_token_id": [258],
}  # fmt: skip
CASES = {
    "internlm": {**LLAMA, "model_type": "internlm", "bias": True, "num_key_value_heads": HEADS},
    "internlm2": {**LLAMA, "model_type": "internlm2", "bias": False, "rope_theta": 5e4},
    "internlm2_bias": {**LLAMA, "model_type": "internlm2", "bias": True},
    "baichuan": {**LLAMA, "model_type": "baichuan", "num_key_value_heads": HEADS},
    "baichuan2": {**LLAMA, "model_type": "baichuan", "num_key_value_heads": HEADS, "vocab_size": 125_696},
    "minicpm": {**LLAMA, "model_type": "minicpm", "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 8},
    "minicpm_tied": {**LLAMA, "model_type": "minicpm", "scale_emb": 2, "scale_depth": 1.4, "dim_model_base": 16,
                     "tie_word_embeddings": True},
    "chatglm": CHATGLM,
    "chatglm_all_heads": {**CHATGLM, "multi_query_attention": False, "add_qkv_bias": False},
}  # fmt: skip


# ---- the architectures, in plain torch


def norm(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight


def angles(count: int, size: int, base: float):
    inverse = base ** (-torch.arange(0, size, 2).float() / size)
    return torch.arange(count).float()[:, None] * inverse


def turned_halves(x, base: float):
    """[T, heads, size]: feature i turns with feature i + size / 2."""
    at = angles(len(x), x.shape[-1], base)[:, None]
    low, high = x.chunk(2, -1)
    return torch.cat([low * at.cos() - high * at.sin(), high * at.cos() + low * at.sin()], -1)


def turned_pairs(x, base: float):
    """[T, heads, size]: the first half turns, neighbours together."""
    half = x.shape[-1] // 2
    at = angles(len(x), half, base)[:, None]
    even, odd = x[..., :half:2], x[..., 1:half:2]
    first = torch.stack([even * at.cos() - odd * at.sin(), odd * at.cos() + even * at.sin()], -1).flatten(-2)
    return torch.cat([first, x[..., half:]], -1)


def attend(q, k, v):
    """[T, heads, size] each."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhc,khc->hqk", q, k) / math.sqrt(q.shape[-1])
    hidden = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
    return torch.einsum("hqk,khc->qhc", scores.masked_fill(hidden, -math.inf).softmax(-1), v).flatten(1)


def forward_internlm2(w, raw, ids):
    x = w["model.tok_embeddings.weight"][ids]
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        h = F.linear(
            norm(x, w[at + "attention_norm.weight"]), w[at + "attention.wqkv.weight"], w.get(at + "attention.wqkv.bias")
        )
        h = h.view(len(ids), KEYS, HEADS // KEYS + 2, SIZE)
        q, k, v = h[:, :, :-2].flatten(1, 2), h[:, :, -2], h[:, :, -1]
        base = raw.get("rope_theta", 10000.0)
        out = attend(turned_halves(q, base), turned_halves(k, base), v)
        x = x + F.linear(out, w[at + "attention.wo.weight"], w.get(at + "attention.wo.bias"))
        h = norm(x, w[at + "ffn_norm.weight"])
        gate, up = h @ w[at + "feed_forward.w1.weight"].T, h @ w[at + "feed_forward.w3.weight"].T
        x = x + (F.silu(gate) * up) @ w[at + "feed_forward.w2.weight"].T
    return norm(x, w["model.norm.weight"]) @ w["output.weight"].T


def forward_llama_like(w, raw, ids):
    """InternLM 1, Baichuan 7B and MiniCPM: Llama's names, but for query, key and value, and multipliers."""
    is_minicpm, keys = "scale_emb" in raw, raw["num_key_value_heads"]
    depth = raw["scale_depth"] / math.sqrt(LAYERS) if is_minicpm else 1.0
    x = w["model.embed_tokens.weight"][ids] * raw.get("scale_emb", 1)
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        h = norm(x, w[at + "input_layernorm.weight"])
        if at + "self_attn.W_pack.weight" in w:
            q, k, v = (h @ w[at + "self_attn.W_pack.weight"].T).chunk(3, -1)
        else:
            names = [at + f"self_attn.{part}_proj" for part in "qkv"]
            q, k, v = (F.linear(h, w[n + ".weight"], w.get(n + ".bias")) for n in names)
        q, k, v = q.view(-1, HEADS, SIZE), k.view(-1, keys, SIZE), v.view(-1, keys, SIZE)
        out = attend(turned_halves(q, 10000.0), turned_halves(k, 10000.0), v)
        x = x + F.linear(out, w[at + "self_attn.o_proj.weight"], w.get(at + "self_attn.o_proj.bias")) * depth
        h = norm(x, w[at + "post_attention_layernorm.weight"])
        gate, up = h @ w[at + "mlp.gate_proj.weight"].T, h @ w[at + "mlp.up_proj.weight"].T
        x = x + (F.silu(gate) * up) @ w[at + "mlp.down_proj.weight"].T * depth
    x = norm(x, w["model.norm.weight"])
    if is_minicpm:
        x = x / (HIDDEN / raw["dim_model_base"])
    head = w["model.embed_tokens.weight"] if raw["tie_word_embeddings"] else w["lm_head.weight"]
    return x @ (F.normalize(head) if raw["vocab_size"] == 125_696 else head).T


def forward_chatglm(w, raw, ids):
    x = w["transformer.embedding.word_embeddings.weight"][ids]
    keys = KEYS if raw["multi_query_attention"] else HEADS
    for i in range(LAYERS):
        at = f"transformer.encoder.layers.{i}."
        h, name = norm(x, w[at + "input_layernorm.weight"]), at + "self_attention.query_key_value"
        h = F.linear(h, w[name + ".weight"], w.get(name + ".bias"))
        if raw["multi_query_attention"]:
            q, k, v = (part.unflatten(-1, (-1, SIZE)) for part in h.split([HEADS * SIZE, keys * SIZE, keys * SIZE], -1))
        else:
            q, k, v = h.view(len(ids), HEADS, 3 * SIZE).chunk(3, -1)
        base = 10000.0 * raw["rope_ratio"]
        x = x + attend(turned_pairs(q, base), turned_pairs(k, base), v) @ w[at + "self_attention.dense.weight"].T
        h = norm(x, w[at + "post_attention_layernorm.weight"]) @ w[at + "mlp.dense_h_to_4h.weight"].T
        gate, up = h.chunk(2, -1)
        x = x + (F.silu(gate) * up) @ w[at + "mlp.dense_4h_to_h.weight"].T
    return norm(x, w["transformer.encoder.final_layernorm.weight"]) @ w["transformer.output_layer.weight"].T


def weights_of(raw) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    kind, found = raw["model_type"], {}

    def add(name: str, *shape: int) -> None:
        offset = 1.0 if len(shape) == 1 and "norm" in name else 0.0
        found[name] = torch.randn(*shape, generator=generator) * 0.2 + offset

    words = raw.get("vocab_size", raw.get("padded_vocab_size"))
    if kind == "chatglm":
        keys = KEYS if raw["multi_query_attention"] else HEADS
        add("transformer.embedding.word_embeddings.weight", words, HIDDEN)
        add("transformer.output_layer.weight", words, HIDDEN)
        add("transformer.encoder.final_layernorm.weight", HIDDEN)
        found["transformer.rotary_pos_emb.inv_freq"] = torch.ones(2)
        for i in range(LAYERS):
            at = f"transformer.encoder.layers.{i}."
            add(at + "input_layernorm.weight", HIDDEN)
            add(at + "post_attention_layernorm.weight", HIDDEN)
            add(at + "self_attention.query_key_value.weight", (HEADS + 2 * keys) * SIZE, HIDDEN)
            if raw["add_qkv_bias"]:
                add(at + "self_attention.query_key_value.bias", (HEADS + 2 * keys) * SIZE)
            add(at + "self_attention.dense.weight", HIDDEN, HEADS * SIZE)
            add(at + "mlp.dense_h_to_4h.weight", 2 * INNER, HIDDEN)
            add(at + "mlp.dense_4h_to_h.weight", HIDDEN, INNER)
        return found
    second, keys = kind == "internlm2", raw["num_key_value_heads"]
    add("model.tok_embeddings.weight" if second else "model.embed_tokens.weight", words, HIDDEN)
    if not raw["tie_word_embeddings"]:
        add("output.weight" if second else "lm_head.weight", words, HIDDEN)
    add("model.norm.weight", HIDDEN)
    outer, all_heads = {"q": HEADS * SIZE, "k": keys * SIZE, "v": keys * SIZE}, (HEADS + 2 * keys) * SIZE
    linear = {
        "internlm2": {"attention.wqkv": (all_heads, HIDDEN), "attention.wo": (HIDDEN, HIDDEN),
                      "feed_forward.w1": (INNER, HIDDEN), "feed_forward.w3": (INNER, HIDDEN),
                      "feed_forward.w2": (HIDDEN, INNER)},
        "baichuan": {"self_attn.W_pack": (all_heads, HIDDEN)},
    }.get(kind, {f"self_attn.{part}_proj": (size, HIDDEN) for part, size in outer.items()})  # fmt: skip
    if not second:
        linear |= {"self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (INNER, HIDDEN),
                   "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER)}  # fmt: skip
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        for name in ("attention_norm", "ffn_norm") if second else ("input_layernorm", "post_attention_layernorm"):
            add(f"{at}{name}.weight", HIDDEN)
        for name, shape in linear.items():
            add(f"{at}{name}.weight", *shape)
            if raw.get("bias") and "att" in name:
                add(f"{at}{name}.bias", shape[0])
    return found


FORWARDS = {"internlm2": forward_internlm2, "chatglm": forward_chatglm}


def write(folder: Path, raw: dict, weights: dict[str, torch.Tensor]) -> Path:
    """As the hub has it: config that names code of its own, weights in the foreign layout."""
    own = {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**raw, "auto_map": own, "torch_dtype": "float32"}))
    (folder / "modeling_own.py").write_text("raise AssertionError('this must not run')")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    byte_tokenizer().save_pretrained(folder)
    return folder


def load(folder: Path, **options):
    config = ModelConfig(model_name_or_path=str(folder), dtype="float32", **options)
    model = load_model(resolve(str(folder)), config, place(config))
    put_kernels(model, config, quiet=True)
    return model.eval()


@pytest.mark.parametrize("name", CASES)
def test_the_relaid_model_computes_the_same(name: str, tmp_path: Path) -> None:
    raw = CASES[name]
    weights = weights_of(raw)
    folder = write(tmp_path / "model", raw, weights)
    model = load(folder)
    ids = torch.arange(3, 40) * 7 % VOCABULARY
    expected = FORWARDS.get(raw["model_type"], forward_llama_like)(weights, raw, ids)
    with torch.no_grad():
        torch.testing.assert_close(model(ids[None]).logits[0], expected, rtol=1e-4, atol=1e-4)
    one = segment(4, 9, seed=1)
    logp = torch.log_softmax(
        FORWARDS.get(raw["model_type"], forward_llama_like)(weights, raw, torch.tensor(one.tokens)), -1
    )
    want = logp[:-1].gather(1, torch.tensor(one.tokens[1:])[:, None])[-9:, 0]
    torch.testing.assert_close(
        Policy(model)(pack([[one], [segment(5, 3, seed=2)]])).logp[:9], want, rtol=1e-4, atol=1e-4
    )
    model.save_pretrained(tmp_path / "saved")
    byte_tokenizer().save_pretrained(tmp_path / "saved")
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "saved")(ids[None]).logits[0], expected, rtol=1e-4, atol=1e-4)


def test_quantized_while_it_is_relaid(tmp_path: Path) -> None:
    raw = CASES["internlm2"]
    folder = write(tmp_path / "model", raw, weights_of(raw))
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        exact, narrow = (load(folder, **o)(ids).logits for o in ({}, {"quantization": "int8"}))
    assert 0 < (exact - narrow).norm() / exact.norm() < 0.05


@pytest.mark.parametrize(("name", "wrong"), [("internlm2", "missing"), ("chatglm", "unknown")])
def test_weights_that_do_not_fit_are_refused(name: str, wrong: str, tmp_path: Path) -> None:
    weights = weights_of(CASES[name])
    if wrong == "missing":
        del weights["model.layers.1.ffn_norm.weight"]
    else:
        weights["transformer.encoder.layers.0.extra.weight"] = torch.ones(2)
    with pytest.raises(ModelError, match=wrong):
        load(write(tmp_path / "model", CASES[name], weights))


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ({"model_type": "baichuan", "hidden_size": 5120, "num_hidden_layers": 40, "vocab_size": 125_696}, "ALiBi"),
        ({"model_type": "chatglm", "position_encoding_2d": True}, "first generation"),
        ({**CHATGLM, "add_bias_linear": True}, "add_bias_linear is True"),
        ({**CASES["minicpm"], "num_experts": 8}, "experts"),
        ({**CASES["minicpm"], "sparse_config": {"topk": 64}}, "sparse"),
        ({"model_type": "nobody"}, "'nobody' is not known"),
    ],
)
def test_what_is_not_exact_needs_its_own_code(raw: dict, why: str, tmp_path: Path) -> None:
    assert foreign_of(raw) is None
    assert why in str(needs_own_code(raw))
    with pytest.raises(ModelError, match="sha256"):
        check_folder(write(tmp_path / "model", raw, {"x": torch.ones(1)}), allow_remote_code=False, allow_pickle=False)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_half_of_gemma3(prefix: str, tmp_path: Path) -> None:
    from helpers import TINY_CONFIGS
    from transformers import AutoModelForCausalLM

    text = TINY_CONFIGS["gemma3"]()
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(text).eval()
    weights = {
        prefix + name.removeprefix("model."): x for name, x in model.state_dict().items() if "lm_head" not in name
    }
    weights |= {"vision_tower.x.weight": torch.ones(2), "multi_modal_projector.y": torch.ones(2)}
    raw = {"model_type": "gemma3", "text_config": text.to_dict(), "vision_config": {"hidden_size": 16}}
    ids = torch.arange(3, 40)[None]
    loaded = load(write(tmp_path / "model", raw, weights))
    assert loaded.config.model_type == "gemma3_text"
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
