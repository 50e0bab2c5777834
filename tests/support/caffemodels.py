"""Writer of .caffemodel files in three generations, and of their prototxt."""

import struct

import numpy as np

from tinyalex.interop.weights import array_names
from tinyalex.models import spec

TYPES = {  # in prototxt and V2, in V1, in V0
    "data": ("Data", 5, "data"),
    "conv": ("Convolution", 4, "conv"),
    "relu": ("ReLU", 18, "relu"),
    "norm": ("LRN", 15, "lrn"),
    "pool": ("Pooling", 17, "pool"),
    "fc": ("InnerProduct", 14, "innerproduct"),
    "drop": ("Dropout", 6, "dropout"),
    "loss": ("SoftmaxWithLoss", 21, "softmax_loss"),
}
SETTINGS = {  # name of the message, its field in V2 and V1; name and field of each setting
    "conv": ("convolution_param", 106, 10, {"num_output": 1, "pad": 3, "kernel_size": 4,
                                            "group": 5, "stride": 6, "dilation": 18}),
    "norm": ("lrn_param", 118, 18, {"local_size": 1, "alpha": 2, "beta": 3, "norm_region": 4,
                                    "k": 5}),
    "pool": ("pooling_param", 121, 19, {"pool": 1, "kernel_size": 2, "stride": 3,
                                        "global_pooling": 12}),
    "fc": ("inner_product_param", 117, 17, {"num_output": 1, "axis": 5, "transpose": 6}),
    "relu": ("relu_param", 123, 30, {"negative_slope": 1}),
    "drop": ("dropout_param", 108, 12, {"dropout_ratio": 1}),
    "data": ("transform_param", 100, 36, {"scale": 1, "mirror": 2, "crop_size": 3,
                                          "mean_value": 5}),
}  # fmt: skip
OLD_SETTINGS = {
    "num_output": 3, "pad": 7, "kernel_size": 8, "group": 9, "stride": 10, "pool": 11,
    "dropout_ratio": 12, "local_size": 13, "alpha": 14, "beta": 15, "k": 22, "scale": 17,
    "crop_size": 20, "mirror": 21,
}  # fmt: skip


def varint(number):
    raw = bytearray()
    while number > 127:
        raw.append(number & 127 | 128)
        number >>= 7
    return bytes([*raw, number])


def field(number, value):
    """Return one field: a whole number, a float or something with a length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def blob(array, legacy=False, packed=True, dtype="<f4"):
    """Return a BlobProto."""
    kind = np.dtype(dtype)
    number = 5 if kind.itemsize == 4 else 8
    if legacy:
        shape = (1,) * (4 - array.ndim) + array.shape
        head = b"".join(field(place, size) for place, size in enumerate(shape, start=1))
    else:
        head = field(7, field(1, b"".join(map(varint, array.shape))))
    if packed:
        return head + field(number, array.astype(kind).tobytes())
    records = np.empty(array.size, [("tag", "u1"), ("value", kind)])
    records["tag"] = number << 3 | (5 if kind.itemsize == 4 else 1)
    records["value"] = array.ravel()
    return head + records.tobytes()


def layers(variant, arrays, crop=None):
    """Return a variant's layers as Caffe has them: kind, name, settings, arrays."""
    names = iter(array_names(variant))
    found = [("data", "data", {"mirror": 1, "crop_size": crop or variant.input_size}, [])]
    number = 0
    for layer in (*variant.features, *variant.classifier):
        own = []
        if isinstance(layer, (spec.Conv, spec.Linear)):
            number += 1
            own = [np.array(arrays[next(names)]) for _ in range(2)]
            if number == 1:
                own[0] = own[0][:, ::-1]  # BGR
        match layer:
            case spec.Conv(channels, kernel, stride, padding, groups):
                settings = {"num_output": channels, "kernel_size": kernel}
                more = {"pad": (padding, 0), "group": (groups, 1), "stride": (stride, 1)}
                settings |= {key: value for key, (value, plain) in more.items() if value != plain}
                found.append(("conv", f"conv{number}", settings, own))
            case spec.Linear():
                found.append(("fc", f"fc{number}", {"num_output": len(own[1])}, own))
            case spec.ReLU():
                found.append(("relu", f"relu{number}", {}, []))
            case spec.LRN(alpha, k, size, beta):
                settings = {"local_size": size, "alpha": alpha, "beta": beta}
                settings |= {} if k == 1 else {"k": float(k)}
                found.append(("norm", f"norm{number}", settings, []))
            case spec.Pool(kernel, stride):
                settings = {"pool": 0, "kernel_size": kernel, "stride": stride}
                found.append(("pool", f"pool{number}", settings, []))
            case spec.Dropout():
                found.append(("drop", f"drop{number}", {"dropout_ratio": 0.5}, []))
    return [*found, ("loss", "loss", {}, [])]


def caffemodel(these, generation, name="AlexNet", **writing):
    """Return a .caffemodel of layers from `layers`."""
    writing.setdefault("legacy", generation < 2)
    top = field(1, name)
    for layer in these:
        top += (_v0, _v1, _v2)[generation](*layer, writing)
    return top


def _settings(kind, settings, place):
    if kind not in SETTINGS or not settings:
        return b""
    numbers = SETTINGS[kind][3]
    return field(SETTINGS[kind][place], b"".join(_fields(settings, numbers)))


def _fields(settings, numbers):
    for key, value in settings.items():
        for one in value if isinstance(value, (list, tuple)) else [value]:
            yield field(numbers[key], one)


def _v2(kind, name, settings, arrays, writing):
    blobs = b"".join(field(7, blob(array, **writing)) for array in arrays)
    head = field(1, name) + field(2, TYPES[kind][0]) + field(3, "bottom") + field(4, name)
    return field(100, head + blobs + _settings(kind, settings, 1))


def _v1(kind, name, settings, arrays, writing):
    blobs = b"".join(field(6, blob(array, **writing)) for array in arrays)
    head = field(2, "bottom") + field(3, name) + field(4, name) + field(5, TYPES[kind][1])
    return field(2, head + blobs + _settings(kind, settings, 2))


def _v0(kind, name, settings, arrays, writing):
    before = b""
    if pad := settings.get("pad", 0):  # in a layer of its own
        before = _v0("padding", f"pad{name[-1]}", {"padding": pad}, [], writing)
        settings = {key: value for key, value in settings.items() if key != "pad"}
    numbers = OLD_SETTINGS | {"padding": OLD_SETTINGS["pad"]}
    told = TYPES[kind][2] if kind in TYPES else kind
    inner = field(1, name) + field(2, told) + b"".join(_fields(settings, numbers))
    inner += b"".join(field(50, blob(array, **writing)) for array in arrays)
    return before + field(2, field(1, inner) + field(2, "bottom") + field(3, name))


def prototxt(these, size):
    """Return the description of the layers, without data and loss, for images of a size."""
    text = f'input: "data"\ninput_shape {{ dim: 1 dim: 3 dim: {size} dim: {size} }}\n'
    bottom = "data"
    for kind, name, settings, _ in these[1:-1]:
        inner = "".join(
            f"{key}: {'MAX' if key == 'pool' else value} " for key, value in settings.items()
        )
        message = f"{SETTINGS[kind][0]} {{ {inner}}}" if inner else ""
        head = f'name: "{name}" type: "{TYPES[kind][0]}" bottom: "{bottom}" top: "{name}"'
        text += f"layer {{ {head} {message} }}\n"
        bottom = name
    return text
