"""Source of every setting of a variant, as a table."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tinyalex.models.spec import (
    LRN,
    Conv,
    Dropout,
    Gaussian,
    Init,
    Layer,
    Linear,
    ReLU,
    Variant,
    WithinMapNorm,
    Xavier,
)

Row = tuple[str, str, str]

SECTION_5 = "paper, section 5"

PAPER = {
    "input": "paper, sections 2 and 3.5: 224 x 224 out of 256 x 256",
    "mean": "paper, section 2: the mean over the training set of each pixel",
    "pixel scale": "paper, section 2: raw RGB values",
    "augmentation": "paper, section 4.1: crops and reflections",
    "colour noise": "paper, section 4.1; values in 0..1, in 0..255 it would drown every image",
    "response norm": "paper, section 3.3: alpha 1e-4 without the division",
    "conv weights": SECTION_5,
    "fc weights": SECTION_5,
    "dropout": "paper, section 4.2: the first two fully connected layers",
    "update": "paper, section 5: the decay and the rate are inside the velocity",
    "learning rate": SECTION_5,
    "bias learning rate": "paper, section 5: an equal learning rate for all layers",
    "momentum": SECTION_5,
    "weight decay": SECTION_5,
    "bias weight decay": "chosen here: the paper makes no difference between weights and biases",
    "batch size": SECTION_5,
    "epochs": "paper, section 5: roughly 90",
    "schedule": "paper, section 5: by 10, three times; how many epochs to wait is chosen here",
}
PARAMS_145 = "layers/layer-params-145.cfg"
SOURCE2012 = {
    **PAPER,
    "input": "convdata_jpeg.py with --crop-border=16; layer.py rounds conv1's output up",
    "mean": "convdata_jpeg.py (which subtracts the mean's central crop from every crop)",
    "pixel scale": "convdata_jpeg.py: raw RGB values",
    "augmentation": "convdata_jpeg.py (which draws once for 32 images, here for each)",
    "colour noise": "convdata_jpeg.py, --color-noise 0.1: color_stdevs, then divided by 1.1",
    "response norm": "layers/layers-145.cfg; layer.py divides alpha by size, minDiv is k",
    "within-map norm": "layers/layers-145.cfg: cnorm2; the paper does not mention it",
    "conv weights": "layers/layers-145.cfg: initW, initB",
    "fc weights": "layers/layers-145.cfg: initW, initB",
    "dropout": "layers/layers-145.cfg: HiddenSexLayer, keep 0.5",
    "update": "src/weights.cu: inc = mom inc + eps grad - wc eps w",
    "learning rate": f"{PARAMS_145}: epsW",
    "bias learning rate": f"{PARAMS_145}: epsB 0.02, twice epsW; both then fell on their own",
    "momentum": f"{PARAMS_145}: momW, momB",
    "weight decay": f"{PARAMS_145}: wc",
    "bias weight decay": "src/layer.cu: biases do not decay",
    "schedule": "run 170's of the weights, dexp[tgtFactor=250,numSteps=4], here of the biases as "
    "well, which it gave dexp[tgtFactor=10,numSteps=2]; run 145 was lowered by hand, epsB to 0.002",
}


def _caffe(folder: str) -> dict[str, str]:
    """Return the sources of one of Caffe's models."""
    train_val, solver = f"{folder}/train_val.prototxt", f"{folder}/solver.prototxt"
    return {
        "input": f"{train_val}: crop_size",
        "mean": f"{train_val}: mean_file",
        "pixel scale": f"{train_val}: no scale",
        "augmentation": f"{train_val}: crop_size, mirror",
        "colour noise": f"{train_val} has none",
        "response norm": f"{train_val}; k is Caffe's default, alpha is divided by local_size",
        "conv weights": f"{train_val}: weight_filler, bias_filler",
        "fc weights": f"{train_val}: weight_filler, bias_filler",
        "dropout": f"{train_val}: drop6, drop7",
        "update": "solvers/sgd_solver.cpp: the rate is inside the velocity",
        "learning rate": f"{solver}: base_lr",
        "bias learning rate": f"{train_val}: lr_mult 2",
        "momentum": solver,
        "weight decay": solver,
        "bias weight decay": f"{train_val}: decay_mult 0",
        "batch size": train_val,
        "epochs": f"{solver}: max_iter 450000 of 256 images",
        "schedule": f"{solver}: stepsize 100000, gamma 0.1",
    }


CAFFE = _caffe("bvlc_alexnet")
REFERENCES = "references/classification"
TORCHVISION = {
    "input": "torchvision/models/alexnet.py; the adaptive pool takes other sizes as well",
    "mean": f"{REFERENCES}/presets.py, times 255",
    "pixel scale": f"{REFERENCES}/presets.py, times 255",
    "augmentation": f"the paper's; {REFERENCES} takes crops of random size (here --augment strong)",
    "colour noise": f"{REFERENCES} has none",
    "response norm": "torchvision/models/alexnet.py",
    "conv weights": "torch's default (nn.Conv2d.reset_parameters)",
    "fc weights": "torch's default (nn.Linear.reset_parameters)",
    "dropout": "torchvision/models/alexnet.py: in front of fc6 and fc7",
    "update": "torch.optim.SGD",
    "learning rate": f"{REFERENCES}/README.md: --lr 1e-2",
    "bias learning rate": f"{REFERENCES}/train.py",
    "momentum": f"{REFERENCES}/train.py",
    "weight decay": f"{REFERENCES}/train.py",
    "bias weight decay": f"{REFERENCES}/train.py: as the weights",
    "batch size": f"{REFERENCES}/README.md: 8 processes of 32",
    "epochs": f"{REFERENCES}/train.py",
    "schedule": f"{REFERENCES}/train.py",
}
CHAPTER = "chapter_convolutional-modern/alexnet.md"
D2L = {
    **dict.fromkeys(PAPER, CHAPTER),
    "augmentation": "chosen here: the chapter trains on whole images",
    "bias weight decay": f"{CHAPTER}: no decay",
}
SOURCES = {
    "paper": PAPER,
    "source2012": SOURCE2012,
    "caffe": CAFFE,
    "caffenet": _caffe("bvlc_reference_caffenet"),
    "caffe_onnx": {**CAFFE, "input": "onnx/models, bvlcalexnet: data_0"},
    "one_tower": PAPER,
    "torchvision": TORCHVISION,
    "d2l": D2L,
}
"""Source of each setting of a variant, by the names of the rows of `recipe_table`."""


def recipe_table(variant: Variant) -> list[Row]:
    """Return (setting, value, source) for everything that belongs to a variant.

    A variant of one's own, which is not in `SOURCES`, has an empty last column.
    """
    sources = SOURCES.get(variant.name, {})
    return [  # all convolutions have one source, and so have all fully connected layers
        (name, value, sources.get(re.sub(r" ?\d", "", name), ""))
        for name, value in _settings(variant)
    ]


def _settings(variant: Variant) -> list[tuple[str, str]]:
    pixels, recipe, size = variant.pixels, variant.recipe, variant.input_size
    mean = (
        f"{pixels.measured} of the training set" if pixels.mean is None else _numbers(pixels.mean)
    )
    noise = recipe.colour_noise
    if noise != "none":
        noise += " times normal numbers of deviation 0.1"
    options = [f"{name} {value:g}" for name, value in recipe.schedule_options.items()]
    layers = (*variant.features, *variant.classifier)
    norms: dict[str, list[str]] = {}
    for place, layer in enumerate(layers):
        if isinstance(layer, (LRN, WithinMapNorm)):
            name, numbers = _norm(layer, layers[place + 1 :])
            norms[name] = list(dict.fromkeys([*norms.get(name, []), numbers]))
    weights = [layer for layer in layers if isinstance(layer, (Conv, Linear))]
    colours = "1 channel" if variant.in_channels == 1 else f"{variant.in_channels} channels"
    return [
        ("input", f"{size} x {size} pixels, {colours}"),
        ("mean", mean),
        ("pixel scale", f"0..255, divided by {_numbers(pixels.std)}"),
        ("augmentation", "random crops, half of them mirrored"),
        ("colour noise", noise),
        *(
            (f"{name} {number}" if len(different) > 1 else name, numbers)
            for name, different in (norms or {"response norm": ["none"]}).items()
            for number, numbers in enumerate(different, start=1)
        ),
        *(
            (f"{'conv' if isinstance(layer, Conv) else 'fc'}{number} weights", _initial(layer.init))
            for number, layer in enumerate(weights, start=1)
        ),
        ("dropout", "0.5" if Dropout() in layers else "none"),
        ("update", f"{recipe.update}'s form"),
        ("learning rate", f"{recipe.lr:g}"),
        ("bias learning rate", f"times {recipe.bias_lr_factor:g}"),
        ("momentum", f"{recipe.momentum:g}"),
        ("weight decay", f"{recipe.weight_decay:g}"),
        ("bias weight decay", f"times {recipe.bias_decay_factor:g}"),
        ("batch size", f"{recipe.batch_size}"),
        ("epochs", f"{recipe.epochs}"),
        ("schedule", ", ".join([recipe.schedule, *options])),
    ]


def _norm(layer: LRN | WithinMapNorm, after: Sequence[Layer]) -> tuple[str, str]:
    across = isinstance(layer, LRN)
    size = "size" if across else "size squared"
    numbers = (
        f"k {layer.k:g}, size {layer.size}, alpha {layer.alpha:g} / {size}, beta {layer.beta:g}"
    )
    if isinstance(layer, LRN) and layer.groups > 1:
        numbers += ", inside each tower"
    if isinstance(next((one for one in after if isinstance(one, (Conv, ReLU))), None), ReLU):
        numbers += ", before ReLU"
    return "response norm" if across else "within-map norm", numbers


def _initial(init: Init) -> str:
    if isinstance(init, Gaussian):
        return f"normal, deviation {init.std:g}; bias {init.bias:g}"
    return "Xavier, uniform; bias as torch's" if isinstance(init, Xavier) else "torch's default"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in dict.fromkeys(values))
