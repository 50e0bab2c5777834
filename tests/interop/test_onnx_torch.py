"""Weights from ONNX files by both exporters of torch."""

import warnings

import pytest
from onnx_files import (
    agree,
    equal,
    images,
    know_thin_variants,
    logits,
    same_logits,
    thin,
    weights_of,
)

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

OLD = [(9, False), (11, False), (13, False), (17, False)]
NEW = [(18, True), (20, True), (21, True)]


@pytest.mark.parametrize(("opset", "dynamo"), [*OLD, *NEW])
@pytest.mark.parametrize("name", ["paper", "torchvision", "d2l"])
def test_exports_of_torch(name, opset, dynamo, monkeypatch, tmp_path):
    know_thin_variants(monkeypatch)
    model = thin(name)
    twin = torch_twin(model).eval()
    path = tmp_path / "net.onnx"
    x = torch.tensor(images(model, 2))
    options = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}}
    if dynamo:
        options = {"dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},), "verbose": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of its own older exporter
        torch.onnx.export(twin, (x,), path, dynamo=dynamo, opset_version=opset, **options)
    weights = same_logits(path)
    equal(weights, weights_of(model))
    agree(logits(weights.network(), x.numpy()), twin(x).detach().numpy(), 1e-5)


def torch_twin(model):
    """Return the same network, of torch's own layers."""

    def twin(layer):
        kind = type(layer).__name__
        if kind in ("Conv2d", "Linear"):
            options = {"groups": layer.groups} if kind == "Conv2d" else {}
            sizes = (layer.weight.shape[1] * options.get("groups", 1), layer.weight.shape[0])
            if kind == "Conv2d":
                sizes += (layer.kernel_size, layer.stride, layer.padding)
            return getattr(torch.nn, kind)(*sizes, **options)
        if kind == "LocalResponseNorm":
            return torch.nn.LocalResponseNorm(layer.size, layer.alpha, layer.beta, layer.k)
        if kind == "MaxPool2d":
            return torch.nn.MaxPool2d(layer.kernel_size, layer.stride)
        if kind == "AdaptiveAvgPool2d":
            return torch.nn.AdaptiveAvgPool2d(layer.output_size)
        return getattr(torch.nn, kind)()

    features, classifier = map(list, (model.features, model.classifier))
    whole = torch.nn.Sequential(*map(twin, [*features]), torch.nn.Flatten(), *map(twin, classifier))
    with torch.no_grad():
        pairs = zip(whole.parameters(), model.parameters(), strict=True)
        for theirs, ours in pairs:
            theirs.copy_(torch.tensor(ours.detach().numpy()))
    return whole
