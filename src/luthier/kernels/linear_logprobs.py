"""Hidden states x output head -> log-probability (and entropy) of wanted targets, without the logits tensor.

Shapes: N predictions, C one chunk of them, D hidden, V vocabulary.

The gradient of logp_n by the hidden state n is g_n * u_n with u_n = W[target_n] - p_n W, whatever the objective:
g_n is one number. So u is made in the forward pass, while the chunk of logits is there; the backward pass scales it.
A trained head needs g_n before its gradient can be summed, so its chunks are computed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from luthier.kernels import gpu, native, products
from luthier.kernels.op import Op, add

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK_BYTES = 48 * 2**20
"""Of float32 logits that exist at a time."""


def linear_logprobs_reference(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    bias_V: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    with_entropy: bool = False,  # noqa: FBT001
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Tensor, Tensor | None]:
    """Return logp [N] and, when asked, entropy [N], both float32, in nats; `chunk_bytes` is for the other forms.

    Logits are `scale * (h W' + bias)`, then `softcap * tanh(logits / softcap)` where a cap is given.
    """
    logits_NV = F.linear(hidden_ND, weight_VD, bias_V).float() * scale
    if softcap is not None:
        logits_NV = softcap * torch.tanh(logits_NV / softcap)
    logp_NV = torch.log_softmax(logits_NV, dim=-1)
    entropy_N = -(logp_NV.exp() * logp_NV).sum(-1) if with_entropy else None
    return logp_NV.gather(1, targets_N[:, None])[:, 0], entropy_N


def _chunk_rows(vocabulary_size: int, chunk_bytes: int) -> int:
    return max(8, chunk_bytes // (4 * vocabulary_size))


def _logits(hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    logits_CV = F.linear(hidden_CD, weight_VD, bias_V).float()
    if scale != 1.0:
        logits_CV.mul_(scale)
    if softcap is not None:
        logits_CV.div_(softcap).tanh_().mul_(softcap)
    return logits_CV


def _slope(logits_CV: Tensor, scale: float, softcap: float | None) -> Tensor | float:
    """Return d logits / d (h W' + bias)."""
    return scale if softcap is None else (1 - (logits_CV / softcap) ** 2) * scale


@dataclass(frozen=True, slots=True)
class _Head:
    """The output head and what is asked of it."""

    weight_VD: Tensor
    bias_V: Tensor | None
    scale: float
    softcap: float | None
    with_entropy: bool
    with_slopes: bool


_Chunk = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
"""logp [C], entropy [C], and the gradients of both by hidden states [C, D]."""


def _chunk(hidden_CD: Tensor, targets_C: Tensor, head: _Head) -> _Chunk:
    weight_VD, scale, softcap = head.weight_VD, head.scale, head.softcap
    logits_CV = _logits(hidden_CD, weight_VD, head.bias_V, scale, softcap)
    slope = _slope(logits_CV, scale, softcap) if softcap is not None else scale
    target_C1 = targets_C[:, None]
    logits_CV.sub_(logits_CV.amax(1, keepdim=True))
    at_target_C1 = logits_CV.gather(1, target_C1)
    shifted_CV = logits_CV.clone() if head.with_entropy else None
    exp_CV = logits_CV.exp_()
    sum_C1 = exp_CV.sum(1, keepdim=True)
    logp_C = (at_target_C1 - sum_C1.log())[:, 0]
    entropy_C = du_CD = dv_CD = None
    if shifted_CV is not None:
        logp_CV = shifted_CV.sub_(sum_C1.log())
        p_CV = exp_CV / sum_C1
        entropy_C1 = -(p_CV * logp_CV).sum(1, keepdim=True)
        entropy_C = entropy_C1[:, 0]
        if head.with_slopes:
            dv_CD = ((p_CV * (logp_CV + entropy_C1)).neg_() * slope).to(weight_VD.dtype) @ weight_VD
    if head.with_slopes and softcap is None:
        du_CD = (weight_VD[target_C1[:, 0]] - (exp_CV.to(weight_VD.dtype) @ weight_VD) / sum_C1) * scale
    elif head.with_slopes:
        d_logits_CV = exp_CV.div_(sum_C1).neg_().scatter_add_(1, target_C1, torch.ones_like(sum_C1))
        du_CD = d_logits_CV.mul_(slope).to(weight_VD.dtype) @ weight_VD
    return logp_C, entropy_C, du_CD, dv_CD


def _chunk_triton(hidden_CD: Tensor, targets_C: Tensor, head: _Head) -> _Chunk:
    from luthier.kernels.triton.logprobs import score

    logits_CV = F.linear(hidden_CD, head.weight_VD, head.bias_V)
    options = {"slopes": head.with_slopes, "with_entropy": head.with_entropy}
    logp_C, entropy_C, u_CV, v_CV = score(logits_CV, targets_C, head.scale, head.softcap, **options)
    return logp_C, entropy_C if head.with_entropy else None, *_by_hidden(u_CV, v_CV, head)


def _chunk_native(hidden_CD: Tensor, targets_C: Tensor, head: _Head) -> _Chunk:
    if not native.takes(hidden_CD, head.weight_VD):
        return _chunk(hidden_CD, targets_C, head)
    u_CV = products.times_transposed(hidden_CD, head.weight_VD)
    if head.bias_V is not None:
        u_CV += head.bias_V
    options = head.scale, head.softcap or 0.0, head.with_slopes, head.with_entropy
    logp_C, entropy_C, v_CV = native.module().score(u_CV, targets_C, *options)
    return logp_C, entropy_C if head.with_entropy else None, *_by_hidden(u_CV, v_CV, head)


def _by_hidden(u_CV: Tensor, v_CV: Tensor, head: _Head) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients by hidden states of log-probability and entropy from those by raw logits."""
    du_CD = products.times(u_CV, head.weight_VD) if head.with_slopes else None
    return du_CD, products.times(v_CV, head.weight_VD) if head.with_slopes and head.with_entropy else None


class _LinearLogprobs(torch.autograd.Function):
    """See the head of the file."""

    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, targets_N, bias_V, scale, softcap, with_entropy, chunk_bytes, chunk):
        num = len(targets_N)
        logp_N = torch.empty(num, dtype=torch.float32, device=hidden_ND.device)
        head = _Head(weight_VD, bias_V, scale, softcap, with_entropy, ctx.needs_input_grad[0])
        entropy_N = torch.empty_like(logp_N) if with_entropy else None
        du_ND = torch.empty_like(hidden_ND) if head.with_slopes else None
        dv_ND = torch.empty_like(hidden_ND) if head.with_slopes and with_entropy else None
        step = _chunk_rows(weight_VD.shape[0], chunk_bytes)
        for i in range(0, num, step):
            rows = slice(i, i + step)
            logp_N[rows], *others = chunk(hidden_ND[rows], targets_N[rows], head)
            for into, part in zip((entropy_N, du_ND, dv_ND), others, strict=True):
                if into is not None:
                    into[rows] = part
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, bias_V, du_ND, dv_ND)
        ctx.scale, ctx.softcap, ctx.chunk_bytes = scale, softcap, chunk_bytes
        return logp_N, entropy_N

    @staticmethod
    def backward(ctx, *grads):
        d_logp_N, d_entropy_N = grads
        hidden_ND, weight_VD, targets_N, bias_V, du_ND, dv_ND = ctx.saved_tensors
        d_hidden = d_weight = d_bias = None
        if du_ND is not None:
            d_hidden = du_ND * d_logp_N[:, None].to(du_ND.dtype)
            if dv_ND is not None and d_entropy_N is not None:
                d_hidden += dv_ND * d_entropy_N[:, None].to(dv_ND.dtype)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[3]:
            d_weight, d_bias = _head_gradients(ctx, hidden_ND, weight_VD, targets_N, bias_V, d_logp_N, d_entropy_N)
        return d_hidden, d_weight, None, d_bias, None, None, None, None, None


def _head_gradients(ctx, hidden_ND, weight_VD, targets_N, bias_V, d_logp_N, d_entropy_N):
    """Sum the gradients of a trained head, chunk by chunk, in float32."""
    d_weight = torch.zeros_like(weight_VD, dtype=torch.float32)
    d_bias = torch.zeros_like(bias_V, dtype=torch.float32) if bias_V is not None else None
    step = _chunk_rows(weight_VD.shape[0], ctx.chunk_bytes)
    for i in range(0, len(targets_N), step):
        rows = slice(i, i + step)
        logits_CV = _logits(hidden_ND[rows], weight_VD, bias_V, ctx.scale, ctx.softcap)
        slope = _slope(logits_CV, ctx.scale, ctx.softcap)
        logp_CV = torch.log_softmax(logits_CV, -1)
        p_CV = logp_CV.exp()
        d_CV = p_CV * -d_logp_N[rows, None]
        d_CV.scatter_add_(1, targets_N[rows, None], d_logp_N[rows, None].to(d_CV.dtype))
        if d_entropy_N is not None:
            entropy_C1 = -(p_CV * logp_CV).sum(1, keepdim=True)
            d_CV -= p_CV * (logp_CV + entropy_C1) * d_entropy_N[rows, None]
        d_CV *= slope
        d_weight.add_((d_CV.to(hidden_ND.dtype).t() @ hidden_ND[rows]).float())
        if d_bias is not None:
            d_bias += d_CV.sum(0)
    return d_weight.to(weight_VD.dtype), d_bias.to(hidden_ND.dtype) if d_bias is not None else None


def _sample(num: int, hidden: int, vocabulary: int, **options: object):
    def make(dtype: torch.dtype) -> tuple[object, ...]:
        generator = torch.Generator().manual_seed(num)
        h = torch.randn(num, hidden, generator=generator).to(dtype)
        w = torch.randn(vocabulary, hidden, generator=generator).to(dtype)
        t = torch.randint(0, vocabulary, (num,), generator=generator)
        bias = torch.randn(vocabulary, generator=generator).to(dtype) if options.get("bias") else None
        return h, w, t, bias, options.get("scale", 1.0), options.get("softcap"), bool(options.get("entropy"))

    return make


LINEAR_LOGPROBS = add(
    Op(
        "linear_logprobs",
        linear_logprobs_reference,
        samples=[
            _sample(1, 8, 11),
            _sample(0, 8, 11),
            _sample(37, 16, 101, entropy=True),
            _sample(5, 16, 101, softcap=5.0, scale=0.5),
            _sample(9, 16, 101, softcap=5.0, bias=True, entropy=True),
        ],
    )
)


def _in_chunks(chunk: Callable[[Tensor, Tensor, _Head], _Chunk]) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Return what the reference computes, one chunk of logits at a time, each by `chunk`."""

    def call(
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        bias_V: Tensor | None = None,
        scale: float = 1.0,
        softcap: float | None = None,
        with_entropy: bool = False,  # noqa: FBT001
        chunk_bytes: int = CHUNK_BYTES,
    ) -> tuple[Tensor, Tensor | None]:
        options = bias_V, scale, softcap, with_entropy, chunk_bytes
        return _LinearLogprobs.apply(hidden_ND, weight_VD, targets_N, *options, chunk)  # pyright: ignore[reportReturnType]

    return call


LINEAR_LOGPROBS.backend("triton", gpu.unusable, device="cuda")(_in_chunks(_chunk_triton))
linear_logprobs_native = LINEAR_LOGPROBS.backend("native", native.unusable, device="cpu")(_in_chunks(_chunk_native))
linear_logprobs = LINEAR_LOGPROBS.backend("torch")(_in_chunks(_chunk))
