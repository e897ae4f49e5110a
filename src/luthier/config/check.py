"""Rules between sections: a condition that must not hold, and the message with its remedy."""

from __future__ import annotations

import re
from collections.abc import Callable

from luthier.config.combinations import why_not
from luthier.config.schema import RunConfig
from luthier.core.registry import OBJECTIVES, TUNINGS

Rule = tuple[Callable[[RunConfig], bool], str]

VIRTUAL = ("prompt", "ptuning", "ptuning_v2", "prefix")
"""Tunings that learn virtual tokens."""
SMALL_STATE = ("galore_adamw", "apollo_adamw", "badam")
"""Optimizers that need little memory for whole weights."""

RULES: tuple[Rule, ...] = (
    (
        lambda c: c.train.optim in SMALL_STATE and not c.tuning.base_learns,
        "use_galore, use_apollo and use_badam save memory where whole weights learn, but here an adapter does; set "
        "finetuning_type: full, or leave the optimizer out",
    ),
    (
        lambda c: c.data.streaming and _rolls_out(c),
        "streaming: true is for rows; prompts are read before training",
    ),
    (
        lambda c: c.train.memory_budget is not None and _rolls_out(c),
        "memory_budget plans from the lengths of rows, but answers are not known beforehand; set "
        "gradient_checkpointing instead",
    ),
    (
        lambda c: bool(c.data.packing) and _rolls_out(c),
        "packing is for rows; answers are packed anyway, as many as fit a forward pass",
    ),
    (
        lambda c: c.train.precompute_reference is not None and _rolls_out(c),
        "precompute_reference is for rows; answers are scored as they come",
    ),
    (
        lambda c: c.data.mix_strategy != "concat" and _rolls_out(c),
        "mix_strategy is for rows; prompts of several data sets are shuffled together",
    ),
    (
        lambda c: c.rollout.importance_cap > 0 and c.rollout.old_logp == "engine",
        "importance_cap weighs the trainer's log-probabilities against the engine's, but old_logp: engine takes the "
        "engine's for both; leave one of them out",
    ),
    (
        lambda c: c.rollout.reward_model is not None and not _rolls_out(c),
        "reward_model grades answers while training, but this objective learns from rows; leave it out, or set "
        "stage: ppo or grpo",
    ),
    (
        lambda c: c.model.decode_dtype != "auto" and c.model.engine == "hf",
        "decode_dtype is for our decoder, but engine: hf was asked for; leave one of them out",
    ),
    (
        lambda c: c.data.streaming and c.train.max_steps < 1,
        "streaming: true needs max_steps, because the number of rows is not known beforehand",
    ),
    (
        lambda c: c.data.streaming and c.data.tokenized_path is not None,
        "streaming: true tokenizes rows while training, but tokenized_path keeps tokenized rows; leave one of them out",
    ),
    (
        lambda c: c.data.tokenized_path is not None and _rolls_out(c),
        "tokenized_path is for rows; prompts are tokenized in moments",
    ),
    (
        lambda c: c.data.eval_on_each_dataset and not c.data.eval_dataset,
        "eval_on_each_dataset: true needs eval_dataset: the names of the data sets to evaluate on",
    ),
    (
        lambda c: c.data.eval_on_each_dataset and _rolls_out(c),
        "eval_on_each_dataset is for rows; answers to held-out prompts are graded together",
    ),
    (
        lambda c: c.model.rope_length > 0 and c.model.rope_scaling == "none",
        "rope_length needs rope_scaling: linear, dynamic, yarn or llama3",
    ),
    (
        lambda c: c.model.train_from_scratch and not isinstance(c.tuning, TUNINGS.get("full")),
        "train_from_scratch: true needs finetuning_type: full, because what lies on random weights fits no others",
    ),
    (
        lambda c: c.model.train_from_scratch and c.model.quantization != "none",
        "train_from_scratch: true and quantization contradict each other: quantized weights do not learn",
    ),
    (
        lambda c: c.model.train_from_scratch and bool(c.model.adapter_name_or_path),
        "train_from_scratch: true and adapter_name_or_path contradict each other: an adapter fits the weights that it "
        "was trained on",
    ),
    (
        lambda c: c.model.train_from_scratch and c.objective.rows not in ("text", "answer"),
        "train_from_scratch: true needs stage: pt or sft: a model of random weights has no answers to compare",
    ),
    (
        lambda c: c.data.streaming and c.data.val_size > 0,
        "val_size cannot be split off a stream; name an eval_dataset instead",
    ),
    (
        lambda c: c.data.streaming and c.train.save_strategy == "epoch",
        "save_strategy: epoch has no meaning for a stream; use steps",
    ),
    (
        lambda c: c.data.train_on_prompt and c.data.mask_history,
        "train_on_prompt learns the whole conversation and mask_history its last answer only; leave one of them out",
    ),
    (
        lambda c: c.data.train_on_prompt and c.objective.rows in ("pair", "tagged"),
        "train_on_prompt has no meaning for preference rows: only their answers are compared; leave it out",
    ),
    (
        lambda c: c.data.streaming and "baseline" in c.objective.needs,
        "streaming: true reads rows one by one, but here each prompt also gets the answer of another row; leave it out",
    ),
    (
        lambda c: c.train.neftune_noise_alpha > 0 and _rolls_out(c),
        "neftune_noise_alpha would make answers that were not noisy look unlikely; leave it out for stage: ppo and "
        "other objectives over answers",
    ),
    (
        lambda c: c.train.neftune_noise_alpha > 0 and TUNINGS.name_of(c.tuning) in VIRTUAL,
        "neftune_noise_alpha is for embeddings of tokens, but this tuning learns virtual ones; leave one of them out",
    ),
    (
        lambda c: c.train.metric_for_best_model is not None and not c.data.eval_dataset and not c.data.val_size,
        "metric_for_best_model needs evaluation rows; set val_size or eval_dataset",
    ),
    (
        lambda c: c.train.precompute_reference is True and "distribution" in c.objective.needs,
        "precompute_reference: true keeps one number for each token, but use_asft_loss compares whole distributions; "
        "leave precompute_reference out",
    ),
    (
        lambda c: c.data.streaming and c.train.precompute_reference is True,
        "precompute_reference: true needs all rows beforehand, but streaming: true reads them while training; "
        "leave one of them out",
    ),
    (
        lambda c: (
            (c.model.ref_model is not None or bool(c.model.ref_model_adapters))
            and not c.objective.needs & {"reference", "distribution"}
        ),
        "ref_model is set, but this objective compares with no reference; leave it out",
    ),
    (
        lambda c: bool(c.data.eval_dataset) and c.data.val_size > 0,
        "eval_dataset and val_size are both set; keep one",
    ),
    (
        lambda c: c.train.eval_strategy in ("steps", "epoch") and not c.data.eval_dataset and not c.data.val_size,
        "eval_strategy asks for evaluation but there are no rows for it; set val_size or eval_dataset",
    ),
    (
        lambda c: c.train.early_stopping_steps > 0 and not c.data.eval_dataset and not c.data.val_size,
        "early_stopping_steps needs evaluation rows; set val_size or eval_dataset",
    ),
    (
        lambda c: c.train.load_best_model_at_end and not c.data.eval_dataset and not c.data.val_size,
        "load_best_model_at_end needs evaluation rows; set val_size or eval_dataset",
    ),
    (
        lambda c: c.train.load_best_model_at_end and c.train.save_strategy == "no",
        "load_best_model_at_end needs checkpoints; set save_strategy: steps",
    ),
    (
        lambda c: bool(c.data.interleave_probs) and c.data.mix_strategy == "concat",
        "interleave_probs needs mix_strategy: interleave_under, interleave_over or interleave_once",
    ),
    (
        lambda c: bool(c.data.interleave_probs) and len(c.data.interleave_probs) != len(c.data.dataset),
        "interleave_probs needs one number for each data set",
    ),
    (
        lambda c: (
            any(p < 0 for p in c.data.interleave_probs)
            or (bool(c.data.interleave_probs) and not any(c.data.interleave_probs))
        ),
        "interleave_probs must not be negative, and not all 0",
    ),
    (
        lambda c: c.data.val_size > 1 and c.data.val_size % 1 != 0,
        "val_size is a share below 1 or a whole number of rows",
    ),
    (
        lambda c: c.train.max_steps > 0 and c.train.warmup_steps > c.train.max_steps,
        "warmup_steps is larger than max_steps: the learning rate would never reach its peak",
    ),
)


_OTHER_SENSES = re.compile(
    r"(^|_)(vl|omni|audio|ocr)(_|$)|llava|pixtral|mllama|paligemma|voxtral|minicpm_[vo]$|glm4\w*v$|gemma3n"
)
"""Names that templates of models with pictures, films and sounds have there."""


def _of_other_senses(config: RunConfig) -> list[str]:
    name = config.data.template or ""
    if not _OTHER_SENSES.search(name):
        return []
    return [
        f"template: {name} is of models that read pictures, films or sounds; luthier trains text models: take the text "
        "model of the family, with its template"
    ]


def _rolls_out(config: RunConfig) -> bool:
    return "rollouts" in config.objective.needs


def _group_too_small(config: RunConfig) -> list[str]:
    if not _rolls_out(config) or config.rollout.num_generations >= config.objective.smallest_group:
        return []
    name, smallest = OBJECTIVES.name_of(config.objective), config.objective.smallest_group
    return [
        f"num_generations: {config.rollout.num_generations} is too small for {name}, which compares the answers to one "
        f"prompt with each other; set it to {smallest} or more"
    ]


def cross_checks(config: RunConfig) -> list[str]:
    """Return the message of every rule that `config` breaks."""
    tuning, quantization = TUNINGS.name_of(config.tuning), config.model.quantization
    reason = why_not(tuning, quantization)
    impossible = [] if reason is None else [f"finetuning_type: {tuning} with quantization: {quantization}: {reason}"]
    by_rules = [message for broken, message in RULES if broken(config)]
    return impossible + _of_other_senses(config) + _group_too_small(config) + by_rules
