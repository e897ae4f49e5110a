"""Keys of LLaMA-Factory about machines, number formats and other people's engines: only the exceptions.

The tables have the same shape as those of `compat`, which takes them in.
"""

from __future__ import annotations

_RAY = "start one process a device with `accelerate launch -m luthier train FILE`; Ray is not used"
_KT = "the layers of that engine are not those that are trained here; quantization: nf4 makes large models fit"
_FP8 = "products in 8-bit floats are not part of this version; bf16: true computes in bfloat16"

IGNORED: dict[str, str] = {
    **dict.fromkeys(
        ("ray_run_name", "ray_storage_path", "ray_storage_filesystem", "ray_init_kwargs", "resources_per_worker",
         "placement_strategy"),
        "only Ray reads it, which is not used here",
    ),
    **dict.fromkeys(("master_addr", "master_port"), "the launcher sets it: `accelerate launch --main_process_ip`"),
    **dict.fromkeys(
        ("kt_optimize_rule", "cpu_infer", "chunk_size", "kt_mode", "kt_maxlen", "kt_use_cuda_graph", "kt_force_think"),
        "only use_kt reads it",
    ),
    **dict.fromkeys(("fp8_backend", "fp8_enable_fsdp_float8_all_gather"), "only fp8 reads it"),
}  # fmt: skip

REFUSED: dict[str, str] = {
    "fp8": _FP8,
    "use_kt": _KT,
    "use_mca": "Megatron's layouts are not written here; start with `accelerate launch -m luthier train FILE`",
    "use_hyper_parallel": "it needs a launcher of its own; start with `accelerate launch -m luthier train FILE`",
    "ray_num_workers": _RAY,
}
