"""PyTorch as a contestant, in every setting that could be its best.

The settings are the product of the memory layouts, of the ways to run (step by step, compiled in
three modes, or the whole step as one CUDA graph), of two implementations of SGD and, for bfloat16,
of two ways to have it.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from gpu import cases, machine
from gpu.cases import LR, MOMENTUM, WEIGHT_DECAY, Case
from gpu.contestants import Arrays, Contestant
from shared import torch_twin
from tinyalex.backends.gpu import cupy

DEVICE = "cuda"
# Layouts and ways to run, the likely best first.
LAYOUTS = {"channels_last": torch.channels_last, "NCHW": torch.contiguous_format}
EAGER, GRAPH, COMPILED = "eager", "eager in a CUDA graph", "compile"
REDUCED, TUNED = "compile reduce-overhead", "compile max-autotune"
MODES = {COMPILED: "default", REDUCED: "reduce-overhead", TUNED: "max-autotune"}
RUNS = (EAGER, *MODES, GRAPH)
UPDATES = ("fused", "foreach")
AUTOCAST, PURE = "autocast bf16", "pure bf16"
BFLOAT16 = (AUTOCAST, PURE)
WARM_UP = 3  # steps that PyTorch asks for before a capture


@dataclass(frozen=True)
class Setting:
    """One way to set PyTorch up."""

    layout: str
    run: str
    update: str = ""
    bfloat16: str = ""
    shipped: bool = False

    @property
    def name(self) -> str:
        """Return the name of the contestant."""
        words = self.layout, self.run, self.update, self.bfloat16
        return " ".join(["torch", *filter(None, words), *(["as shipped"] if self.shipped else [])])


def settings(case: Case, quick: bool) -> list[Setting]:
    """Return all settings for a case, or with ``quick`` the likely best.

    The quick ones leave out the search for kernels, which takes minutes for each net, and compile
    in one layout.
    """
    if case.precision == "as shipped":
        return [Setting("NCHW", EAGER, "foreach" if case.training else "", shipped=True)]
    updates = UPDATES if case.training else ("",)
    casts = BFLOAT16 if case.precision == "C" else ("",)
    every = [Setting(*s) for s in product(LAYOUTS, RUNS, updates, casts)]
    if not quick:
        return every
    return [
        s
        for s in every
        if s.run != TUNED
        and s.update in ("", "fused")
        and (s.run not in MODES or s.layout == "channels_last")
    ]


# --- flags ----------------------------------------------------------------------------------------


# Where `compile_refuses` the newer switches, another process takes the older: never both in one.
legacy = machine.OLDER_SWITCHES in os.environ


def flags() -> dict[str, Any]:
    """Return the switches of PyTorch's precision and kernels."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    precision = (
        {"cudnn.allow_tf32": cudnn.allow_tf32, "cuda.matmul.allow_tf32": matmul.allow_tf32}
        if legacy
        else {
            "cudnn.conv.fp32_precision": cudnn.conv.fp32_precision,
            "cuda.matmul.fp32_precision": matmul.fp32_precision,
        }
    )
    return {
        **precision,
        "cudnn": cudnn.version(),
        "cudnn.benchmark": cudnn.benchmark,
        "cudnn.deterministic": cudnn.deterministic,
        "allow_bf16_reduced_precision_reduction": (
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
        ),
    }


_SHIPPED = flags()  # read before anything is set


def set_flags(precision: str) -> dict[str, Any]:
    """Set the switches for a class, and read them back."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    if precision == "as shipped":
        asked = _SHIPPED
    else:
        exact, rounded = (False, True) if legacy else ("ieee", "tf32")
        products = exact if precision == "A" else rounded
        asked = dict.fromkeys(list(flags())[:2], products) | {"cudnn.benchmark": True}
    convolution, matrix = list(asked.values())[:2]
    if legacy:
        cudnn.allow_tf32, matmul.allow_tf32 = convolution, matrix
    else:
        cudnn.conv.fp32_precision, matmul.fp32_precision = convolution, matrix
    cudnn.benchmark = asked["cudnn.benchmark"]
    found = flags()
    if wrong := {name: found[name] for name in asked if found[name] != asked[name]}:
        raise RuntimeError(f"PyTorch was asked for {asked} and says {wrong}")
    return found


def compile_refuses() -> str | None:
    """Return why nothing compiles under the newer switches, None if it does.

    Some versions read the older ones while they compile, which is an error once the newer ones are
    set (pytorch#166387).
    """
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(288, 8))
    net = net.to(DEVICE)
    x = torch.ones(4, 3, 8, 8, device=DEVICE)
    try:
        for precision in ("B", "A"):
            set_flags(precision)
            forget_compiled()
            torch.compile(net)(x).sum().backward()
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
    return None


def expected(net: cases.Net, images: int, training: bool) -> Arrays:
    """Return `cases.expected`, in float64 on the GPU."""
    model = net.build()
    twin = torch_twin.twin(model).to(DEVICE, torch.float64).train(training)
    x, labels = (torch.from_numpy(array).to(DEVICE) for array in cases.batch(net, images))
    with torch.set_grad_enabled(training):
        logits = twin(x.double())
    if not training:
        return {"logits": logits.cpu().numpy()}
    loss = torch.nn.functional.cross_entropy(logits, labels)
    loss.backward()
    names = [name for name, _ in model.named_parameters()]
    gradients = [p.grad.cpu().numpy() for p in twin.parameters()]
    return {"loss": loss.detach().cpu().numpy(), **dict(zip(names, gradients, strict=True))}


# --- the contestant -------------------------------------------------------------------------------


class Torch(Contestant):
    """The twin of the net in one setting."""

    def __init__(self, case: Case, setting: Setting) -> None:
        self.case, self.setting, self.name = case, setting, setting.name
        self.settings = set_flags(case.precision)
        stream = torch.cuda.current_stream().cuda_stream
        self.stream = cupy().cuda.ExternalStream(stream) if stream else cupy().cuda.Stream.null
        begun = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self._build()
        if setting.run == GRAPH:
            self._capture()
        else:
            self._step()
            self._step()
        torch.cuda.synchronize()
        self.peak_bytes = torch.cuda.max_memory_allocated() - begun

    def _build(self) -> None:
        case, setting = self.case, self.setting
        model = case.net.build()
        self._names = [name for name, _ in model.named_parameters()]
        images, labels = cases.batch(case.net, case.images)
        layout = LAYOUTS[setting.layout]
        kind = torch.bfloat16 if setting.bfloat16 == PURE else torch.float32
        net = torch_twin.twin(model).to(DEVICE).to(memory_format=layout).train(case.training)
        self._masters = list(net.parameters())
        self._first = [p.detach().clone() for p in self._masters]
        if setting.bfloat16 == PURE and case.training:
            self._masters = [torch.nn.Parameter(p.detach().clone()) for p in self._masters]
            for master in self._masters:
                master.grad = torch.zeros_like(master)
        net = net.to(kind)
        self._used = list(net.parameters())  # in bfloat16 not the masters
        self._x = torch.from_numpy(images).to(DEVICE, kind).contiguous(memory_format=layout)
        self._labels = torch.from_numpy(labels).to(DEVICE)
        mode = MODES.get(setting.run)
        self._net = torch.compile(net, mode=mode) if mode else net
        self._optimizer = torch.optim.SGD(
            self._masters,
            LR,
            MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            fused=setting.update == "fused" or None,
            foreach=setting.update == "foreach" or None,
        )
        self._step = self._train if case.training else self._predict
        self._graph: torch.cuda.CUDAGraph | None = None

    def _cast(self) -> Any:
        if self.setting.bfloat16 != AUTOCAST:
            return nullcontext()
        # A graph must not hold on to casts that were made outside of it.
        return torch.autocast(DEVICE, torch.bfloat16, cache_enabled=self.setting.run != GRAPH)

    def _train(self) -> None:
        for parameter in self._used:
            parameter.grad = None  # what zero_grad(set_to_none=True) does
        with self._cast():
            logits = self._net(self._x)
            self._output = torch.nn.functional.cross_entropy(logits.float(), self._labels)
        self._output.backward()
        pure = self._used[0] is not self._masters[0]
        if pure:
            gradients = [p.grad for p in self._used]
            torch._foreach_copy_([p.grad for p in self._masters], gradients)
        self._optimizer.step()
        if pure:
            with torch.no_grad():
                torch._foreach_copy_(self._used, self._masters)

    def _predict(self) -> None:
        with torch.inference_mode(), self._cast():
            self._output = self._net(self._x)

    def _capture(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._step()
        self._graph.replay()

    def step(self) -> None:
        """Queue one training step, or one prediction."""
        if self._graph is not None:
            self._graph.replay()
            return
        if self.setting.run in (REDUCED, TUNED):  # their graphs may write over the last results
            self._output = None
            torch.compiler.cudagraph_mark_step_begin()
        self._step()

    def restore(self) -> None:
        """Give the net the weights that it began with."""
        with torch.no_grad():
            for parameters in (self._masters, self._used):
                for parameter, first in zip(parameters, self._first, strict=True):
                    parameter.copy_(first)

    def poison(self) -> None:
        """Fill the gradients and the result with NaN."""
        with torch.inference_mode():
            if self._graph is not None:
                self._output.fill_(float("nan"))
            for parameter in (*self._used, *self._masters):
                if parameter.grad is not None:
                    parameter.grad.fill_(float("nan"))

    def results(self) -> Arrays:
        """Return the last step's ``loss`` and gradients, or the ``logits``."""
        torch.cuda.synchronize()
        output = self._output.detach().float().cpu().numpy()
        if not self.case.training:
            return {"logits": output}
        return {"loss": output, **self._named(p.grad for p in self._used)}

    def weights(self) -> Arrays:
        """Return the weights as they are now."""
        return self._named(p.detach() for p in self._masters)

    def velocities(self) -> Arrays:
        """Return the velocities of SGD."""
        return self._named(self._optimizer.state[p]["momentum_buffer"] for p in self._masters)

    def _named(self, tensors: Iterator[Any]) -> Arrays:
        torch.cuda.synchronize()
        arrays = (t.detach().to("cpu", torch.float32, copy=True).numpy() for t in tensors)
        return dict(zip(self._names, arrays, strict=True))

    def close(self) -> None:
        """Give all memory back."""
        for name in list(vars(self)):
            if name.startswith("_"):
                setattr(self, name, None)
        tidy()


def tidy() -> None:
    """Give PyTorch's unused memory back to the GPU, after a failure too."""
    gc.collect()
    torch.cuda.empty_cache()


def forget_compiled() -> None:
    """Drop all compiled code, which only piles up from case to case."""
    torch._dynamo.reset()
    # By default it continues uncompiled after eight nets, without a word that a table could show.
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
