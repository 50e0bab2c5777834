"""PyTorch as a contestant, in every setting that could be its best.

The settings are the product of the memory layouts, of the ways to run (step by step, compiled,
compiled with the search for the best kernels, or the whole step as one CUDA graph), of two
implementations of SGD and, for bfloat16, of two ways to have it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from gpu import cases
from gpu.cases import LR, MOMENTUM, WEIGHT_DECAY, Case
from gpu.contestants import Arrays, Contestant
from shared import torch_twin
from tinyalex.backends.gpu import cupy

DEVICE = "cuda"
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
EAGER, COMPILED, TUNED, GRAPH = "eager", "compile", "compile max-autotune", "eager in a CUDA graph"
RUNS = (EAGER, GRAPH, COMPILED, TUNED)
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
    only where there is something to gain: not one image, whose time is that of the launches.
    """
    if case.precision == "as shipped":
        return [Setting("NCHW", EAGER, "foreach" if case.training else "", shipped=True)]
    updates = UPDATES if case.training else ("",)
    casts = BFLOAT16 if case.precision == "C" else ("",)
    every = [Setting(*s) for s in product(LAYOUTS, RUNS, updates, casts)]
    if not quick:
        return every
    compiled = ("channels_last", COMPILED) if case.images > 1 and case.precision != "A" else ()
    return [
        s
        for s in every
        if s.update in ("", "fused") and (s.run in (EAGER, GRAPH) or (s.layout, s.run) == compiled)
    ]


# --- flags ----------------------------------------------------------------------------------------


def flags() -> dict[str, Any]:
    """Return the switches of PyTorch's precision and kernels."""
    return {
        "cudnn.conv.fp32_precision": torch.backends.cudnn.conv.fp32_precision,
        "cuda.matmul.fp32_precision": torch.backends.cuda.matmul.fp32_precision,
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "allow_bf16_reduced_precision_reduction": (
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
        ),
    }


_SHIPPED = flags()  # read before anything is set


def set_flags(precision: str) -> dict[str, Any]:
    """Set the switches for a class, and read them back."""
    if precision == "as shipped":
        convolution, matrix, search = (_SHIPPED[name] for name in list(_SHIPPED)[:3])
    else:
        convolution = matrix = "ieee" if precision == "A" else "tf32"
        search = True
    torch.backends.cudnn.conv.fp32_precision = convolution
    torch.backends.cuda.matmul.fp32_precision = matrix
    torch.backends.cudnn.benchmark = search
    found = flags()
    asked = [convolution, matrix, search]
    if list(found.values())[:3] != asked:
        raise RuntimeError(f"PyTorch was asked for {asked} and says {found}")
    return found


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
        modes = {COMPILED: "default", TUNED: "max-autotune"}
        compiled = setting.run in modes
        self._net = torch.compile(net, mode=modes[setting.run]) if compiled else net
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
        if self.setting.run == TUNED:  # its own graphs may now write over the last results
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
