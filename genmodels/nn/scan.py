"""State-space recurrences and the short convolution before them, in plain PyTorch.

A recurrence h_t = decay_t h_(t-1) + input_t is computed for all t at once: Mamba-2's in chunks of
matrix products (`ssd`), Mamba-1's in blocks with a gradient of its own (`selective_scan`). Decays
are computed in float32, or float64 where the inputs are; `ssd` multiplies them in the dtype of the
inputs.

Several sequences may share a row. `sequences` (N, T) has the number of the sequence that each
position belongs to, from `places.number_sequences`; the state before the row belongs to number 0. A
sequence does not see the state of another.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from genmodels.nn.operations import count, counted

BLOCK = 16
"""Steps of Mamba-1's scan whose states are in memory at once."""
CACHED = 2**20
"""Numbers of those states on a CPU, 4 MB in float32, which fit its cache. Rows are scanned in groups
of that size."""


def short_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor, sequences: Tensor | None
) -> Tensor:
    """Causal depthwise convolution as a sum of shifted inputs: 2 N T C K operations, and 4 N T C K in
    the backward pass.

    Args:
        x: (N, T, C).
        weight: (C, K). The last column multiplies x_t, the one before it x_(t-1).
        bias: (C,), or None.
        before: the K - 1 inputs before x, (N, K - 1, C).
        sequences: int (N, T); inputs of other sequences count as 0. None: one sequence.

    Returns:
        (N, T, C).
    """
    length, kernel = x.shape[1], weight.shape[1]
    padded = torch.cat([before.to(x.dtype), x], dim=1)  # (N, K - 1 + T, C)
    same = None
    if sequences is not None:
        own = F.pad(sequences, (kernel - 1, 0))  # the state has number 0
        same = torch.stack([own[:, k : k + length] == sequences for k in range(kernel)])[..., None]  # (K, N, T, 1)
    # The compiler fuses the sum, and does not take a function with a derivative of its own.
    shifted_sum = _shifted_sum if torch.compiler.is_compiling() else _ShiftedSum.apply
    out = counted(shifted_sum(padded, weight, same), 2 * x.numel() * kernel)
    return out if bias is None else out + bias


class _ShiftedSum(torch.autograd.Function):
    """`_shifted_sum`, whose gradients are added up in place. Those of autograd would fill a tensor for
    each k."""

    @staticmethod
    def forward(padded: Tensor, weight: Tensor, same: Tensor | None) -> Tensor:
        return _shifted_sum(padded, weight, same)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        padded, weight, same = ctx.saved_tensors
        if gradients[0] is None:
            return None, None, None
        length = gradients[0].shape[1]
        to_padded, to_weight = torch.zeros_like(padded), torch.empty_like(weight)
        for k, column in enumerate(_columns(weight)):
            gradient = gradients[0] if same is None else gradients[0] * same[k]
            to_padded[:, k : k + length].addcmul_(gradient, column)
            to_weight[:, k] = (gradient * padded[:, k : k + length]).sum((0, 1))
        return to_padded, to_weight, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor | None:
        padded, weight, same = ctx.saved_tensors
        of_padded, of_weight, _ = tangents
        parts = [] if of_padded is None else [_shifted_sum(of_padded, weight, same)]
        parts += [] if of_weight is None else [_shifted_sum(padded, of_weight, same)]
        return sum(parts[1:], parts[0]) if parts else None


def _shifted_sum(padded: Tensor, weight: Tensor, same: Tensor | None) -> Tensor:
    """sum over k of padded_(t + k) weight_k, where `same` (K, N, T, 1) is True, or everywhere."""
    length = padded.shape[1] - weight.shape[1] + 1
    out = torch.zeros_like(padded[:, :length])
    for k, column in enumerate(_columns(weight)):
        shifted = padded[:, k : k + length]
        out = out.addcmul_(shifted if same is None else shifted * same[k], column)
    return out


def _columns(weight: Tensor) -> tuple[Tensor, ...]:
    """The columns of a matrix, each contiguous: products with strided ones take four times as long."""
    return weight.T.contiguous().unbind()


def last_inputs(before: Tensor, inputs: Tensor, sequences: Tensor | None, valid: Tensor | None) -> Tensor:
    """The K - 1 inputs before the next position, (N, K - 1, C): those of padding and of earlier
    sequences are left out. Padding is last in `inputs` (N, T, C)."""
    kept = before.shape[1]
    padded = torch.cat([before.to(inputs.dtype), inputs], dim=1)  # (N, K - 1 + T, C)
    if sequences is not None:
        own = F.pad(sequences, (kept, 0))
        padded = padded * (own == sequences[:, -1:])[..., None]
    if valid is None:
        return padded[:, padded.shape[1] - kept :]
    places = valid.sum(1, keepdim=True) + torch.arange(kept, device=inputs.device)  # (N, K - 1)
    return padded.gather(1, places[..., None].expand(*places.shape, padded.shape[-1]))


def ssd(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor, sequences: Tensor | None = None, chunk: int = 64
) -> tuple[Tensor, Tensor]:
    """Mamba-2's state-space duality (arXiv 2405.21060), in chunks.

        h_t = exp(dt_t a) h_(t-1) + dt_t x_t b_t^T,    y_t = h_t c_t

    Within a chunk it is masked attention; between chunks, states are passed on. A head h reads the
    group h // (H / G) of b and c.

    Every token takes 2 G L S + 2 H L P + 4 H P S operations in matrix products, and every chunk
    2 H P S to pass the state on. The backward pass takes twice as many, and none for the last state.

    Args:
        x: inputs (N, T, H, P).
        dt: step sizes (N, T, H), positive; at 0 a position leaves the state as it is.
        a: (H,), negative.
        b, c: (N, T, G, S).
        h: state before, (N, H, P, S), in the dtype of dt.
        sequences: int (N, T); the positions of a sequence are neighbours. None: one sequence.
        chunk: L, positions of a chunk. It changes speed and rounding only.

    Returns:
        y (N, T, H, P) in the dtype of x, and the last state (N, H, P, S).
    """
    n, length, heads, width = x.shape
    groups, size = b.shape[2:]
    chunk = min(chunk, length)
    extra = -length % chunk
    if extra:
        # dt = 0: positions after the end change no state.
        x, dt, b, c = (F.pad(value, (0,) * (2 * value.ndim - 3) + (extra,)) for value in (x, dt, b, c))
        sequences = None if sequences is None else torch.cat([sequences, sequences[:, -1:].expand(-1, extra)], dim=1)
    count = (length + extra) // chunk  # K chunks
    shape = (n, count, chunk)
    dt = dt.reshape(*shape, heads)
    # In the order of the tokens, (N, K, L, H, P). Only the products within a chunk need it by heads.
    x = (x.reshape(*shape, heads, width) * dt[..., None]).to(x.dtype)
    b, c = (value.reshape(*shape, groups, size).transpose(2, 3) for value in (b, c))  # (N, K, G, L, S)
    # Log to base 2 of the decay since the chunk's beginning, (N, K, H, L). On a CPU, exp takes several times as long as
    # exp2 where the result underflows.
    total = (dt.transpose(2, 3) * (a[:, None] / math.log(2))).cumsum(-1)
    inside = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).tril()  # (L, L)
    from_before = to_end = None
    if sequences is not None:
        sequences = sequences.reshape(shape)
        inside = (inside & (sequences[..., :, None] == sequences[..., None, :]))[:, :, None]  # (N, K, 1, L, L)
        last = torch.cat([torch.zeros_like(sequences[:, :1, -1]), sequences[:, :-1, -1]], dim=1)  # (N, K)
        from_before = (sequences == last[..., None])[:, :, None]  # (N, K, 1, L)
        to_end = (sequences == sequences[..., -1:])[:, :, None]  # (N, K, 1, L)

    # The sum with -total has a cheaper gradient than the difference, which negates the whole matrix.
    decay = (total[..., :, None] + (-total)[..., None, :]).masked_fill(~inside, -torch.inf).exp2()  # (N, K, H, L, L)
    scores = (c @ b.mT)[:, :, :, None] * decay.to(x.dtype).unflatten(2, (groups, -1))  # (N, K, G, H / G, L, L)
    y = (scores.flatten(2, 3) @ x.transpose(2, 3)).transpose(2, 3)  # (N, K, L, H, P)

    after = (total[..., -1:] - total).exp2()  # (N, K, H, L)
    since = total.exp2()  # (N, K, H, L)
    if from_before is not None and to_end is not None:
        after, since = after * to_end, since * from_before
    # The heads of a group side by side, H P / G columns in one product.
    columns = heads * width // groups
    kept = (x * after.transpose(2, 3)[..., None].to(x.dtype)).reshape(*shape, groups, columns)  # (N, K, L, G, H P / G)
    added = (kept.permute(0, 1, 3, 4, 2) @ b).reshape(n, count, *h.shape[1:])  # (N, K, H, P, S)
    states = []
    # The decay over a chunk is 0 if a sequence begins in it. (The gradient of unbind is one copy.)
    for passed, new in zip(since[..., -1, None, None].unbind(1), added.to(h.dtype).unbind(1), strict=True):
        states.append(h)
        h = counted(passed * h + new, 2 * h.numel())
    before = torch.stack(states, dim=1).to(x.dtype).reshape(n, count, groups, columns, size)  # (N, K, G, H P / G, S)
    read = (c @ before.mT).transpose(2, 3).reshape(*shape, heads, width)  # (N, K, L, H, P)
    y = y + read * since.transpose(2, 3)[..., None].to(x.dtype)
    return y.reshape(n, count * chunk, heads, width)[:, :length], h


def ssd_step(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """One position of `ssd`: shapes as there, without T. Returns y (N, H, P) and the state.

    It takes 5 N H P S operations: 1 for the input, 2 for the state and 2 for the output.
    """
    heads = x.shape[1]
    b, c = (value.repeat_interleave(heads // value.shape[1], dim=1).to(h.dtype) for value in (b, c))  # (N, H, S)
    h = (dt * a).exp()[..., None, None] * h + (dt[..., None] * x)[..., None] * b[:, :, None]
    h = counted(h, 3 * h.numel())
    return (h @ c[..., None])[..., 0].to(x.dtype), h


def selective_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor, starts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mamba-1's selective scan (arXiv 2312.00752).

        h_t = exp(dt_t a) h_(t-1) + dt_t x_t b_t,    y_t = sum over S of c_t h_t

    The states of BLOCK steps are in memory at once. The gradient computes those of a block again
    from the state at its beginning. There is none with respect to the first state, and no second
    derivative.

    It takes 6 N T D S operations: 1 for the exponent of the decay, 1 for the input, 2 for the state
    and 2 for the output. The backward pass takes 19 N T D S: 4 for the states again, 3 for their
    gradient, 2 for that of c, 4 for those of x and b, and 6 for those of the decays.

    Args:
        x: inputs (N, T, D).
        dt: step sizes (N, T, D), positive; at 0 a position leaves the state as it is.
        a: (D, S), negative.
        b, c: (N, T, S).
        h: state before, (N, D, S), in the dtype of dt.
        starts: bool (N, T), True where a sequence begins. None: nowhere.

    Returns:
        y (N, T, D) in the dtype of dt, and the last state (N, D, S).
    """
    keep = torch.ones_like(dt[..., :1]) if starts is None else (~starts)[..., None].to(dt.dtype)  # (N, T, 1)
    x, b, c = (value.to(dt.dtype) for value in (x, b, c))
    rows = max(1, CACHED // (BLOCK * a.numel())) if x.device.type == "cpu" else len(x)
    parts = zip(*(value.split(rows) for value in (x, dt, b, c, h, keep)), strict=True)
    done = [_SelectiveScan.apply(x, dt, a, b, c, h, keep) for x, dt, b, c, h, keep in parts]
    y, last = done[0] if len(done) == 1 else (torch.cat(values) for values in zip(*done, strict=True))
    return y, last


class _SelectiveScan(torch.autograd.Function):
    """Time is the first axis of the states and D the last one, so that a step reads and writes
    contiguous memory, and no product repeats a number along the last axis."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor, keep: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, dt, b, c, keep = (value.transpose(0, 1) for value in (x, dt, b, c, keep))  # (T, N, ...)
        a, h = a.T.contiguous(), h.mT.contiguous()  # (S, D), (N, S, D)
        y, memory = torch.empty_like(x), _memory(2, x, a)
        count(4 * x.numel() * len(a))
        firsts = []
        for t in range(0, len(x), BLOCK):
            part = slice(t, t + BLOCK)
            firsts.append(h)
            states, _ = _states(memory, x[part], dt[part], a, b[part], h, keep[part])
            h = states[-1].clone()
            y[part] = (c[part, :, None] @ states).squeeze(2)
        ctx.save_for_backward(x, dt, a, b, c, keep, *firsts)
        last = h.mT.contiguous()
        ctx.mark_non_differentiable(last)
        return y.transpose(0, 1), last

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gy = gradients[0].transpose(0, 1)  # (T, N, D)
        x, dt, a, b, c, keep, *firsts = ctx.saved_tensors
        count(13 * x.numel() * len(a))
        gx, gdt, gb, gc, ga = (torch.empty_like(value) for value in (x, dt, b, c, a))
        ga.zero_()
        later = torch.zeros_like(firsts[0])  # gradient that reaches the state from later steps, (N, S, D)
        memory = _memory(3, x, a)
        for k in reversed(range(len(firsts))):
            part = slice(k * BLOCK, (k + 1) * BLOCK)
            states, decay = _states(memory, x[part], dt[part], a, b[part], firsts[k], keep[part])
            gh = memory[2, : len(states)]  # (t, N, S, D)
            torch.mul(gy[part, :, None], c[part, ..., None], out=gh)
            for t in reversed(range(len(gh))):
                gh[t] += later
                torch.mul(gh[t], decay[t], out=later)
            gc[part] = (states @ gy[part, ..., None]).squeeze(3)
            gb[part] = (gh @ (dt[part] * x[part])[..., None]).squeeze(3)
            gu = (b[part, :, None] @ gh).squeeze(2)  # gradient of dt x
            gx[part] = gu * dt[part]
            # What a decay of exp(dt a) receives, times that decay: (t, N, S, D).
            decay[1:] *= states[:-1]
            decay[0] *= firsts[k]
            gh *= decay
            gdt[part] = gu * x[part] + torch.mul(gh, a, out=decay).sum(2)
            gh *= dt[part, :, None]
            ga += gh.sum((0, 1))
        gx, gdt, gb, gc = (value.transpose(0, 1) for value in (gx, gdt, gb, gc))
        return gx, gdt, ga.T, gb, gc, None, None


def _memory(tensors: int, x: Tensor, a: Tensor) -> Tensor:
    """Memory for some tensors (t, N, S, D), which each block uses again."""
    return x.new_empty(tensors, min(BLOCK, len(x)), x.shape[1], *a.shape)


def _states(
    memory: Tensor, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, h: Tensor, keep: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the states and the decays of a block, (t, N, S, D) each, in `memory`. Inputs are (t, N, ...)."""
    states, decay = memory[0, : len(x)], memory[1, : len(x)]
    torch.mul(dt[:, :, None], a, out=decay).exp_()
    decay *= keep[..., None]
    torch.mul((dt * x)[:, :, None], b[..., None], out=states)
    for t in range(len(states)):
        states[t].addcmul_(decay[t], h)
        h = states[t]
    return states, decay
