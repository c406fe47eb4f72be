"""Sections of gpu.py that need no model: the card, and torch's attention in the shapes that the project calls it
with."""

import contextlib
import math
import os
import sys
from importlib.metadata import PackageNotFoundError, version

import torch
import torch.nn.functional as F
from probe import CUDA, DEVICE, Probe, backend, cudnn_attention, ms, once
from torch.nn.attention import SDPBackend, sdpa_kernel

from activeo3.attention import mask_for
from activeo3.packing import branching_mask, mask_mod


def env(probe: Probe) -> None:
    """Card, versions, which SDPA backend torch tries first, matrix rate, copy bandwidth, cost of a launch."""

    def held(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "-"

    names = (
        "torch",
        "transformers",
        "deepspeed",
        "triton",
        "peft",
        "accelerate",
        "flash-attn",
        "nvidia-cudnn-cu13",
        "numpy",
        "pydantic",
    )
    probe.note("versions", python=sys.version.split()[0], **{name: held(name) for name in names})
    probe.note("cpu", cores=os.cpu_count(), threads=torch.get_num_threads())
    if not CUDA:
        return probe.note("no GPU: toy sizes on a CPU")
    p = torch.cuda.get_device_properties(0)
    probe.note(
        "card", name=p.name, gb=p.total_memory / 1e9, sm=f"{p.major}.{p.minor}", cudnn=torch.backends.cudnn.version()
    )
    with probe.trying("SDPA order"):
        q = torch.randn(1, 4, 64, 64, device=DEVICE, dtype=torch.bfloat16)
        F.scaled_dot_product_attention(q, q, q)  # the default order is set at the first call
        order = torch._C._get_sdp_priority_order()
        names = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn", 4: "overrideable"}
        probe.note("SDPA order", order=" > ".join(names.get(int(i), str(i)) for i in order),
             avoid_recompile=os.environ.get("TORCH_CUDNN_SDPA_AVOID_RECOMPILE", "unset"))  # fmt: skip
    a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    probe.note("bf16 matrix rate", tflops=2 * 8192**3 / (ms(lambda: a @ b) / 1e3) / 1e12)
    x = torch.empty(2**31, dtype=torch.uint8, device=DEVICE)
    y = torch.empty_like(x)
    probe.note("copy bandwidth", tb_per_s=2 * 2**31 / (ms(lambda: y.copy_(x)) / 1e3) / 1e12)
    tiny_kernel = torch.zeros(1, device=DEVICE)
    probe.note("launch", us_per_eager_add=1e3 * ms(lambda: [tiny_kernel.add_(1) for _ in range(1000)], 5) / 1000)


def sdpa(probe: Probe) -> None:
    """The project's calls of SDPA: kernels, times of new and seen lengths, finite gradients, errors against float32."""
    H, KV, D = (28, 4, 128) if not probe.tiny else (8, 2, 32)
    S, T, G = (1400, 200, 8) if not probe.tiny else (260, 20, 4)
    dtype = torch.bfloat16
    W = G * T

    def heads(count: int, length: int, grad: bool = False):
        return torch.randn(1, length, count, D, device=DEVICE, dtype=dtype).transpose(1, 2).requires_grad_(grad)

    def branch_mask(queries: int, keys: int):
        """The project's mask of the last columns: prefix and own branch, additive, rows padded to multiples of 8."""
        owner = torch.arange(W, device=DEVICE)[None] // T
        rule = mask_mod(torch.ones(1, keys - W, dtype=torch.bool, device=DEVICE), owner)
        return mask_for("sdpa", branching_mask(rule, 1, keys, DEVICE, keys - queries), dtype)

    def masked(keys: int, grad: bool):
        q, k, v = heads(H, W + 1, grad), heads(H, keys, grad), heads(H, keys, grad)
        mask = branch_mask(W + 1, keys)
        out = lambda: F.scaled_dot_product_attention(q, k, v, mask)  # noqa: E731
        return (lambda: out().backward(torch.ones_like(q))) if grad else out

    def causal(length: int, grad: bool):
        q, k, v = heads(H, length, grad), heads(KV, length, grad), heads(KV, length, grad)
        out = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)  # noqa: E731
        return (lambda: out().backward(torch.ones_like(q))) if grad else out

    # 1. kernels and times of the update's two calls, by backend
    ways = {"default": None}
    if CUDA:
        ways |= {
            "cudnn": SDPBackend.CUDNN_ATTENTION,
            "flash": SDPBackend.FLASH_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION,
        }
    for name, make, size in (("masked, branches", masked, S + W), ("causal, prompt", causal, S)):
        for way, kernel in ways.items():
            with probe.trying(f"{name}, {way}"), sdpa_kernel(kernel) if kernel else contextlib.nullcontext():
                work = make(size, True)
                first = once(work)
                probe.note(f"{name}, {way}", kernel=backend(work), first_ms=1e3 * first, forward_backward_ms=ms(work, 5),
                     forward_ms=ms(make(size, False), 5))  # fmt: skip
    # 2. a new length against a seen one: what every step, and every token, pays
    for off in (False, True) if CUDA else (True,):
        cudnn_attention(not off)
        tag = "cuDNN off" if off else "cuDNN on"
        for name, make in (("masked", masked), ("causal", causal)):
            with probe.trying(f"new lengths, {name}, {tag}"):
                base = (S + W if name == "masked" else S) + 1000 * (1 + off)
                works = [make(base + 17 * i, True) for i in range(4)]
                new, seen = [once(w) for w in works], [once(w) for w in works]
                probe.note(
                    f"new lengths, forward and backward, {name}, {tag}",
                    new_ms=1e3 * sum(new) / 4,
                    seen_ms=1e3 * sum(seen) / 4,
                )
        for rows, with_mask in ((8, False), (16, True)):
            with probe.trying(f"decode {rows} rows, {tag}"):
                room = torch.randn(2, rows, KV, S + 128, D, device=DEVICE, dtype=dtype)
                q = torch.randn(rows, H, 1, D, device=DEVICE, dtype=dtype)

                def step(columns: int):
                    k, v = room[0, :, :, :columns], room[1, :, :, :columns]
                    if not with_mask:
                        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
                    mask = torch.ones(rows, 1, 1, columns, dtype=torch.bool, device=DEVICE)
                    mask[:, :, :, :3] = False
                    return F.scaled_dot_product_attention(
                        q.view(rows, KV, H // KV, D), k, v, mask
                    )  # transformers' pack_gqa

                columns = [S + i + 40 * off for i in range(20)]
                new, seen = [once(lambda c=c: step(c)) for c in columns], [once(lambda c=c: step(c)) for c in columns]
                probe.note(f"decode, one layer's attention, {rows} rows{', padded' * with_mask}, {tag}", kernel=backend(lambda: step(S)),
                     new_length_ms=1e3 * sorted(new)[10], seen_length_ms=1e3 * sorted(seen)[10])  # fmt: skip
    cudnn_attention(False)
    # 3. finite gradients where the last tile of keys is half full (pytorch #196678), in the published case and in ours
    if CUDA:
        for way in ("cuDNN on", "cuDNN off"):
            cudnn_attention(way == "cuDNN on")
            bad = {}
            for name, queries, keys in (
                ("square 704", 704, 704),
                ("ours 257 x 1856", 257, 1856),
                ("ours 257 x 1920", 257, 1920),
            ):
                q, k = (torch.randn(1, 4, n, D, device=DEVICE, dtype=dtype) * 0.1 for n in (queries, keys))
                v = torch.randn(1, 4, keys, D, device=DEVICE, dtype=dtype)
                q[..., 0], k[..., 0] = 1.0, -120 * math.sqrt(D)
                q.requires_grad_(), k.requires_grad_(), v.requires_grad_()
                mask = torch.zeros(1, 1, queries, keys, device=DEVICE, dtype=dtype)
                with probe.trying(f"finite gradients, {name}"):
                    F.scaled_dot_product_attention(q, k, v, mask).backward(
                        torch.randn(1, 4, queries, D, device=DEVICE, dtype=dtype)
                    )
                    bad[name] = int((~torch.isfinite(q.grad)).sum() + (~torch.isfinite(k.grad)).sum())
            probe.note(f"gradients that are not finite, logsumexp -120, {way}", **bad)
        cudnn_attention(False)
    # 4. errors against float32
    q, k, v = (heads(H, n, True) for n in (W + 1, S + W, S + W))
    mask, up = branch_mask(W + 1, S + W), torch.randn(1, H, W + 1, D, device=DEVICE, dtype=dtype)
    exact = [x.detach().float().requires_grad_() for x in (q, k, v)]
    with sdpa_kernel(SDPBackend.MATH):
        out = F.scaled_dot_product_attention(*exact, mask.float())
        out.backward(up.float())
    for way, kernel in ways.items():
        with probe.trying(f"errors, {way}"), sdpa_kernel(kernel) if kernel else contextlib.nullcontext():
            for x in (q, k, v):
                x.grad = None
            found = F.scaled_dot_product_attention(q, k, v, mask)
            found.backward(up)
            off = lambda a, b: float((a.float() - b).norm() / b.norm())  # noqa: E731
            probe.note(f"relative errors of the masked call, {way}", out=off(found, out), dq=off(q.grad, exact[0].grad),
                 dk=off(k.grad, exact[1].grad), dv=off(v.grad, exact[2].grad))  # fmt: skip
