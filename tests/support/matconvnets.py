"""MatConvNet's networks: SimpleNN's two ways of writing, and DagNN."""

import io

import numpy as np
import scipy.io


def filters(kind, array):
    """Return a weight as H x W x C x K; fc6's inputs are 6 x 6 pixels in every channel."""
    if kind == "fc":
        side = 6 if array.shape[1] % 36 == 0 and array.shape[1] // 36 in (16, 256) else 1
        array = array.reshape(len(array), -1, side, side)
    return array.transpose(2, 3, 1, 0)


def simple(theirs, old=False):
    """Return layers from `caffemodels.layers` as SimpleNN has them, in RGB."""
    found = []
    for kind, name, settings, arrays in theirs[1:-1]:
        layer = {"name": name}
        if arrays:
            weight, bias = arrays
            weight = filters(kind, weight[:, ::-1] if name == "conv1" else weight)
            layer |= {"type": "conv", "stride": np.full((1, 2), settings.get("stride", 1.0)),
                      "pad": np.full((1, 4), float(settings.get("pad", 0)))}  # fmt: skip
            both = np.empty((1, 2), object)
            both[0, 0], both[0, 1] = weight, bias[None]
            layer |= {"filters": weight, "biases": bias[None]} if old else {"weights": both}
        elif kind == "norm":
            size = settings["local_size"]
            numbers = [size, settings.get("k", 1.0), settings["alpha"] / size, settings["beta"]]
            layer |= {"type": "normalize", "param": np.array([numbers])}
        elif kind == "pool":
            layer |= {"type": "pool", "method": "max", "pool": np.full((1, 2), 3.0),
                      "stride": np.full((1, 2), 2.0), "pad": np.zeros((1, 4))}  # fmt: skip
        elif kind == "relu":
            layer |= {"type": "relu"}
        else:
            layer |= {"type": "dropout", "rate": 0.5}
        found.append(layer)
    return [*found, {"name": "prob", "type": "softmax"}]


def dag(layers):
    """Return layers and params as DagNN saves them."""
    kinds = {"conv": "Conv", "relu": "ReLU", "pool": "Pooling", "normalize": "LRN",
             "dropout": "DropOut", "softmax": "SoftMax"}  # fmt: skip
    params, found = [], []
    for layer in layers:
        names = np.empty((1, 0), object)
        block = {key: value for key, value in layer.items() if key in ("stride", "pad", "param")}
        if "weights" in layer:
            names = np.array([[f"{layer['name']}{part}" for part in "fb"]], object)
            params += [
                {"name": n, "value": v} for n, v in zip(names[0], layer["weights"][0], strict=True)
            ]
        if "pool" in layer:
            block |= {"poolSize": layer["pool"], "method": "max"}
        block = block or {"opts": np.zeros((0, 0))}
        found.append({"name": layer["name"], "type": f"dagnn.{kinds[layer['type']]}",
                      "params": names, "block": block})  # fmt: skip
    return {"layers": structs(found), "params": structs(params)}


def structs(dicts):
    """Return a struct array."""
    array = np.empty((1, len(dicts)), [(key, object) for key in dicts[0]])
    for place, one in enumerate(dicts):
        array[0, place] = tuple(one.values())
    return array


def cell(values):
    """Return a cell array."""
    array = np.empty((1, len(values)), object)
    array[0, :] = values
    return array


def mat(packed=False, **variables):
    """Return the bytes of a .mat file."""
    file = io.BytesIO()
    scipy.io.savemat(file, variables, do_compression=packed)
    return file.getvalue()
