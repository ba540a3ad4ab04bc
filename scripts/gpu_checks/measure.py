"""Seconds, peak memory, and the shares of kernels, on a CUDA device or a CPU."""

import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

KINDS = {
    "attention": r"flash|fmha|attention|sdpa|softmax",
    "product": r"gemm|gemv|cutlass|cublas|nvjet|matmul|splitk|aten::(add)?b?mm|aten::linear",
    "copy": r"copy|memcpy|memset|cat|index|gather|scatter|aten::(to|clone|contiguous|fill_)",
    "reduction": r"reduce|norm|mean|sum|argmax|sort|topk|scan",
    "elementwise": r"elementwise|vectorized|aten::(add|mul|sub|div|silu|neg|cos|sin|rsqrt|pow|exp|where)",
}
"""Kernels by patterns of their names; the first that fits counts."""


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds of one call, over so many after one that warms up."""
    run()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Bytes that were allocated at most during a call, beyond those before it."""
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        run()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - held
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def kernel_shares(run: Callable[[], object], device: torch.device) -> dict[str, float]:
    """The share of each kind of kernel in the time of all kernels of a call, in per cent."""
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_cuda else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        run()
        synchronize(device)
    times: Counter[str] = Counter()
    for event in profiler.key_averages():
        spent = _device_time(event) if on_cuda else event.self_cpu_time_total
        if spent > 0:
            times[kind_of(event.key)] += spent
    total = sum(times.values()) or 1.0
    return {kind: 100 * spent / total for kind, spent in times.most_common()}


def _device_time(event: Any) -> float:
    # Operators carry the time of the kernels that they launch, which are listed themselves.
    is_kernel = event.device_type == torch.autograd.DeviceType.CUDA
    return float(event.self_device_time_total) if is_kernel else 0.0


def kind_of(kernel: str) -> str:
    """The kind of a kernel by its name."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, kernel, re.IGNORECASE)), "other")


def copy_bandwidth(device: torch.device) -> float:
    """GB/s that a copy on the device reads and writes: what its memory gives in practice."""
    elements = 1 << (30 if device.type == "cuda" else 22)
    source = torch.zeros(elements, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * elements / seconds(lambda: target.copy_(source), device, 5) / 1e9
