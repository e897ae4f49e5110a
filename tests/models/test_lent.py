"""A lent model gives the plain model's numbers: losses, gradients, fused fields, and whatever goes the plain way."""

import copy

import pytest
import torch
from helpers import TINY_CONFIGS, VOCABULARY
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl.trainer.utils import add_fused_lm_head

from luthier.kernels.head_scores import FIELDS, Head, head_scores, head_scores_reference
from luthier.models.lent import lend, take_back
from luthier.models.lent_head import Learned
from luthier.models.lent_rows import rows_of
from luthier.models.quantized import QuantizedLinear

LENGTHS = (37, 21, 30)
FAMILIES = ["llama_tied", "qwen3", "mistral", "gemma2", "gpt2", "cohere", "falcon", "qwen3_moe"]


def model_of(name: str, *, classes: int = 0):
    """A random model with opinions, without dropout."""
    torch.manual_seed(1)
    config = TINY_CONFIGS[name]()
    for key in ("attn_pdrop", "embd_pdrop", "resid_pdrop", "attention_dropout"):
        setattr(config, key, 0.0)
    config.num_labels = classes
    model = (AutoModelForSequenceClassification if classes else AutoModelForCausalLM).from_config(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)
    return model.train()


def with_lora(model, **more):
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", **more))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return adapted.train()


def padded(side: str, *, shared: int = 0):
    """Three rows, padded; a hole in the labels, and context in front of them."""
    draw, width = torch.Generator().manual_seed(3), max(LENGTHS)
    ids, mask = torch.zeros(3, width, dtype=torch.long), torch.zeros(3, width, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        here = slice(width - length, width) if side == "left" else slice(0, length)
        ids[row, here] = torch.randint(1, VOCABULARY - 4, (length,), generator=draw)
        mask[row, here] = 1
    ids[:, :shared] = ids[0, :shared]
    labels = ids.masked_fill(mask == 0, -100)
    labels[0, 20:24] = -100
    first = mask.cumsum(1) <= 3
    return {"input_ids": ids, "attention_mask": mask, "labels": labels.masked_fill(first, -100)}


def flattened():
    """The same rows end to end, positions restarting."""
    batch = padded("right")
    real = batch["attention_mask"].bool()
    ids, labels = (batch[name][real][None] for name in ("input_ids", "labels"))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    return {"input_ids": ids, "position_ids": positions, "labels": labels}


BATCHES = {"right": padded("right"), "left": padded("left"), "shared": padded("right", shared=20), "flat": flattened()}


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def same_gradients(have, expected, tolerance: float = 1e-4) -> None:
    assert set(have) == set(expected)
    for name, gradient in expected.items():
        largest = max(1e-6, float(gradient.abs().max()))
        torch.testing.assert_close(have[name], gradient, rtol=tolerance, atol=tolerance * largest, msg=name)


def learn(model, batch, **more):
    output = model(**batch, use_cache=False, **more)  # with a cache, transformers lets packed rows see each other
    output.loss.backward()
    return float(output.loss.detach()), gradients(model), output


def assert_same_learning(plain, batch, **more) -> None:
    """`plain` and a lent copy of it agree; the lent one did not go the plain way."""
    lent = copy.deepcopy(plain)
    lend(lent)
    expected, have = learn(plain, batch, **more), learn(lent, batch, **more)
    assert isinstance(have[2], Learned)
    assert have[0] == pytest.approx(expected[0], rel=1e-4)
    same_gradients(have[1], expected[1])


# ---- losses and gradients


@pytest.mark.parametrize("batch", BATCHES)
def test_full_tuning(batch: str) -> None:
    assert_same_learning(model_of("llama"), BATCHES[batch])


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str) -> None:
    assert_same_learning(model_of(name), BATCHES["right"])


def test_positions_that_are_learned_count_from_where_a_row_begins() -> None:
    assert_same_learning(model_of("gpt2"), BATCHES["left"])


@pytest.mark.parametrize("batch", BATCHES)
def test_lora(batch: str) -> None:
    assert_same_learning(with_lora(model_of("llama")), BATCHES[batch])


def test_counts_of_a_window_and_shifted_labels() -> None:
    assert_same_learning(model_of("llama"), BATCHES["right"], num_items_in_batch=torch.tensor(50))
    batch = dict(BATCHES["right"])
    batch["shift_labels"] = F.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    assert_same_learning(model_of("llama"), batch)


def test_recomputed_layers() -> None:
    plain = model_of("llama")
    plain.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same_learning(plain, BATCHES["right"])


def test_trained_embedding_beside_adapters() -> None:
    assert_same_learning(with_lora(model_of("llama"), modules_to_save=["lm_head"]), BATCHES["right"])


def test_quantized_base() -> None:
    plain = model_of("llama")
    for name, module in list(plain.model.named_modules()):
        if name.endswith("_proj"):
            parent, _, child = name.rpartition(".")
            layer = QuantizedLinear.of(module, "nf4", double=False, dtype=torch.float32)
            setattr(plain.model.get_submodule(parent), child, layer)
    assert_same_learning(with_lora(plain), BATCHES["right"])


def test_bfloat16_autocast() -> None:
    plain = with_lora(model_of("llama"))
    lent = copy.deepcopy(plain)
    lend(lent)
    with torch.autocast("cpu", torch.bfloat16):
        expected, have = learn(plain, BATCHES["right"]), learn(lent, BATCHES["right"])
    assert have[0] == pytest.approx(expected[0], rel=0.02)
    for name, gradient in expected[1].items():
        assert float((have[1][name] - gradient).norm() / gradient.norm()) < 0.1, name


def test_padding_that_predicts_goes_the_plain_way() -> None:
    """With whole rows as labels and padding on the left, a padding token predicts the first real one."""
    batch = dict(BATCHES["left"])
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    assert_same_learning(model_of("llama"), batch)


def test_tokens_are_computed_once() -> None:
    batch = BATCHES["shared"]
    read = F.pad(batch["labels"][:, 1:] != -100, (0, 1))
    rows = rows_of(batch["input_ids"], batch["attention_mask"], None, read)
    assert rows is not None
    lasts = [length - 1 for length in LENGTHS]  # the last token predicts nothing
    assert rows.input_ids.shape[1] == sum(lasts) - 2 * 20
    holed = batch["attention_mask"].clone()
    holed[0, 10] = 0
    around = read & (holed == 1)  # the hole itself is not read
    assert rows_of(batch["input_ids"], holed, None, around) is None


# ---- TRL's fused head


@pytest.mark.parametrize("order", ["lent first", "lent last", "adapter last"])
@pytest.mark.parametrize("batch", ["right", "flat"])
def test_fused_fields(batch: str, order: str) -> None:
    """Every field, whatever was laid over the model first; gradients flow through entropy, too."""
    made = []
    for is_lent in (False, True):
        model = model_of("llama")
        model = model if order == "adapter last" else with_lora(model)
        if is_lent and order != "lent last":
            lend(model)
        base = model.get_base_model() if order != "adapter last" else model
        model = with_lora(model) if order == "adapter last" else model
        add_fused_lm_head(base, temperature=0.7, outputs=FIELDS)
        if is_lent and order == "lent last":
            lend(model)
        model.train()
        output = model(**BATCHES[batch], fused_lm_head=True, use_cache=False, num_items_in_batch=torch.tensor(40))
        (output.loss + 0.1 * output.entropy.sum()).backward()
        made.append((output, gradients(model), model))
    (expected, grads, _), (have, our_grads, lent) = made
    assert list(have) == list(expected)
    for name in expected:
        torch.testing.assert_close(have[name], expected[name], rtol=1e-4, atol=1e-4, msg=name)
    same_gradients(our_grads, grads)
    calls = []
    inner = lent.get_base_model().model
    inner.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs["input_ids"].shape), with_kwargs=True)
    lent(**BATCHES["right"], fused_lm_head=True, use_cache=False)
    assert calls == [(1, sum(LENGTHS) - 3)]


def test_fused_head_without_labels_or_gradients() -> None:
    model = model_of("llama")
    lend(model)
    add_fused_lm_head(model)
    nothing = {**BATCHES["right"], "labels": torch.full_like(BATCHES["right"]["labels"], -100)}
    output = model.train()(**nothing, fused_lm_head=True)
    output.loss.backward()
    assert float(output.loss.detach()) == 0
    assert not any(gradient.any() for gradient in gradients(model).values())
    with torch.no_grad():
        scored = model.eval()(**BATCHES["right"], fused_lm_head=True)
    assert bool((scored.log_probs[scored.label_mask] < 0).all())


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_head_scores(softcap: float | None) -> None:
    """In chunks of 8 rows, by every backend that is here, against all logits at once."""
    draw = torch.Generator().manual_seed(2)
    values = [torch.randn(21, 16, generator=draw), torch.randn(70, 16, generator=draw), torch.randn(70, generator=draw)]
    targets, found = torch.randint(0, 70, (21,), generator=draw), []
    for call, more in ((head_scores_reference, ()), (head_scores, (1,))):
        hidden, weight, bias = (x.clone().requires_grad_() for x in values)
        fields = call(hidden, Head(weight, bias, 0.5, softcap), targets, FIELDS, *more)
        (fields["log_probs"] * torch.arange(21)).sum().backward(retain_graph=True)
        fields["entropy"].square().sum().backward()
        found.append([*(fields[name].detach() for name in FIELDS), hidden.grad, weight.grad, bias.grad])
    for have, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(have, expected, rtol=1e-4, atol=1e-4)


# ---- the plain way


def test_logits_are_made_when_they_are_read() -> None:
    plain = model_of("llama")
    lent = copy.deepcopy(plain)
    lend(lent)
    output = lent(**BATCHES["right"])
    assert list(output) == ["loss"]
    torch.testing.assert_close(output.logits, plain(**BATCHES["right"]).logits, rtol=1e-4, atol=1e-4)
    again = type(output)({"loss": output.loss})  # as accelerate makes one in mixed precision
    torch.testing.assert_close(again.logits, output.logits)


@torch.no_grad()
def test_evaluation_generation_and_what_models_return() -> None:
    plain = model_of("gemma2").eval()
    lent = copy.deepcopy(plain)
    lend(lent)
    batch = BATCHES["right"]
    expected, have = plain(**batch), lent(**batch)
    assert list(have) == list(expected)
    torch.testing.assert_close(have.logits, expected.logits, rtol=1e-4, atol=1e-4)
    asked = {"output_hidden_states": True, "output_attentions": True, "use_cache": False}
    plain.set_attn_implementation("eager")
    expected, have = plain(**batch, **asked), lent(**batch, **asked)
    torch.testing.assert_close(have.hidden_states, expected.hidden_states, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(have.attentions, expected.attentions, rtol=1e-4, atol=1e-4)
    prompt = {name: BATCHES["left"][name] for name in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(lent.generate(**prompt, **options), plain.generate(**prompt, **options))


def test_adapters_off_several_and_added_later() -> None:
    plain = with_lora(model_of("llama"))
    plain.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    lent = copy.deepcopy(plain)
    lend(lent)
    for name in ("other", "default"):
        plain.set_adapter(name)
        lent.set_adapter(name)
        expected, have = learn(plain.train(), BATCHES["right"]), learn(lent.train(), BATCHES["right"])
        assert have[0] == pytest.approx(expected[0], rel=1e-4)
        same_gradients(have[1], expected[1])
    with plain.disable_adapter(), lent.disable_adapter(), torch.no_grad():
        torch.testing.assert_close(lent(**BATCHES["right"]).loss, plain(**BATCHES["right"]).loss, rtol=1e-4, atol=0)


@pytest.mark.parametrize("side", ["right", "left"])
def test_sequence_classifier(side: str) -> None:
    plain = model_of("llama", classes=1)
    plain.config.pad_token_id = 0
    lent = copy.deepcopy(plain)
    lend(lent)
    batch = {name: BATCHES[side][name] for name in ("input_ids", "attention_mask")}
    found = []
    for model in (plain, lent):
        logits = model(**batch, use_cache=False).logits
        F.softplus(logits).sum().backward()
        found.append((logits.detach(), gradients(model)))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-5)
    same_gradients(found[1][1], found[0][1])


# ---- lending and taking back


def test_take_back_leaves_nothing() -> None:
    model = model_of("llama")
    before = {id(module): set(module.__dict__) for module in model.modules()}
    attention = model.config._attn_implementation
    lines = lend(model)
    assert any("forest_attention" in line for line in lines)
    assert lend(model) == lines
    take_back(model)
    assert {id(module): set(module.__dict__) for module in model.modules()} == before
    assert model.config._attn_implementation == attention
    assert not isinstance(model(**BATCHES["right"]), Learned)


def test_a_copy_of_a_lent_model_has_its_own_weights() -> None:
    model = model_of("llama")
    lend(model)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(**BATCHES["right"]).loss, model(**BATCHES["right"]).loss)
    before = float(model(**BATCHES["right"]).loss.detach())
    twin.model.norm.weight.data.mul_(2)
    assert abs(float(twin(**BATCHES["right"]).loss.detach()) - before) > 0.01
    assert float(model(**BATCHES["right"]).loss.detach()) == pytest.approx(before)


def test_take_back_under_a_trainer_and_lend_again() -> None:
    model = model_of("llama")
    lend(model)
    add_fused_lm_head(model)
    model.train()
    expected = float(model(**BATCHES["right"], fused_lm_head=True).loss.detach())
    take_back(model)
    assert not isinstance(model(**BATCHES["right"]), Learned)
    assert float(model.train()(**BATCHES["right"], fused_lm_head=True).loss) == pytest.approx(expected, rel=1e-4)
    lend(model)
    assert float(model(**BATCHES["right"], fused_lm_head=True).loss) == pytest.approx(expected, rel=1e-4)
    assert isinstance(model(**BATCHES["right"]), Learned)
