"""Eight AlexNets as data: the paper's, the 2012 source's, six others.

Layers stand in the order in which they run, so that two variants can be compared line by line.
Where a number differs from the paper's, the provenance names the file that says so.
"""

from __future__ import annotations

from dataclasses import replace

from tinyalex.models.recipe import IMAGENET_PIXELS, RAW_PIXELS, PixelScale, Recipe
from tinyalex.models.spec import (
    LRN,
    AdaptivePool,
    Conv,
    Dropout,
    Gaussian,
    Linear,
    Pad,
    Pool,
    ReLU,
    Variant,
    WithinMapNorm,
    Xavier,
)

CLASSES = None  # the last layer has as many outputs as there are classes

PAPER = Variant(
    name="paper",
    title="as the paper describes it",
    provenance="""
        Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural
        Networks, NIPS 2012. Layers: sections 3.1 to 3.5; the two GPUs are groups=2 (section 3.2).
        LRN: section 3.3, alpha 1e-4 on the plain sum of 5 squares, so 5e-4 where the sum is
        divided by 5. Dropout: section 4.2. Initial weights, biases and recipe: section 5; raw RGB
        values minus the mean: section 2. Not in the paper: how 224 pixels give 55x55 outputs (here
        padding 2), and how many epochs to wait for an improvement (here 5).
    """,
    input_size=224,
    features=(
        Conv(96, 11, stride=4, padding=2, init=Gaussian(0.01)),
        ReLU(),
        LRN(alpha=5e-4, k=2),  # the paper's 1e-4 times 5: here alpha is divided by the size
        Pool(),
        Conv(256, 5, padding=2, groups=2, init=Gaussian(0.01, bias=1)),
        ReLU(),
        LRN(alpha=5e-4, k=2),
        Pool(),
        Conv(384, 3, padding=1, init=Gaussian(0.01)),
        ReLU(),
        Conv(384, 3, padding=1, groups=2, init=Gaussian(0.01, bias=1)),
        ReLU(),
        Conv(256, 3, padding=1, groups=2, init=Gaussian(0.01, bias=1)),
        ReLU(),
        Pool(),
    ),
    classifier=(
        Linear(4096, Gaussian(0.01, bias=1)),
        ReLU(),
        Dropout(),
        Linear(4096, Gaussian(0.01, bias=1)),
        ReLU(),
        Dropout(),
        Linear(CLASSES, Gaussian(0.01)),
    ),
    pixels=RAW_PIXELS,
    recipe=Recipe(
        lr=0.01,
        momentum=0.9,
        weight_decay=5e-4,
        batch_size=128,
        epochs=90,
        update="paper",
        schedule="plateau",
        schedule_options={"factor": 0.1, "patience": 5, "max_reductions": 3},
        colour_noise="eigenvalues",
    ),
)

SOURCE2012 = Variant(
    name="source2012",
    title="as the published run really was",
    provenance="""
        The 2012 source code (computerhistory/AlexNet-Source-Code): layers/layers-145.cfg and
        layers/layer-params-145.cfg, whose logs match every printed digit of the paper. conv1 rounds
        up, reading zeros beyond the right and bottom edge (layer.py, modulesX). LRN comes before
        ReLU in layer 1, stays inside each tower and divides alpha by its size (layer.py), with
        minDiv 2. After conv2's LRN there is a within-map normalisation (type rnorm, scale 0.001)
        that the paper does not mention. conv3 to conv5 start at 0.03. Biases learn twice as fast,
        without decay (src/layer.cu). The schedule is run 170's, dexp[tgtFactor=250,numSteps=4], but
        here of biases, too, where it has dexp[tgtFactor=10,numSteps=2]; 145 was lowered by hand.
    """,
    input_size=224,
    features=(
        Pad(3),
        Conv(96, 11, stride=4, init=Gaussian(0.01)),
        LRN(alpha=1e-4, k=2, groups=2),
        Pool(),
        ReLU(),
        Conv(256, 5, padding=2, groups=2, init=Gaussian(0.01, bias=1)),
        ReLU(),
        LRN(alpha=1e-4, k=2, groups=2),
        WithinMapNorm(alpha=1e-3, k=1),
        Pool(),
        Conv(384, 3, padding=1, init=Gaussian(0.03)),
        ReLU(),
        Conv(384, 3, padding=1, groups=2, init=Gaussian(0.03, bias=1)),
        ReLU(),
        Conv(256, 3, padding=1, groups=2, init=Gaussian(0.03, bias=1)),
        Pool(),
        ReLU(),
    ),
    classifier=PAPER.classifier,
    pixels=RAW_PIXELS,
    recipe=Recipe(
        lr=0.01,
        momentum=0.9,
        weight_decay=5e-4,
        batch_size=128,
        epochs=90,
        update="paper",
        bias_lr_factor=2,
        bias_decay_factor=0,
        schedule="discrete_exponential",
        schedule_options={"target_factor": 250, "num_steps": 4},
        colour_noise="deviations",
    ),
)

CAFFE = Variant(
    name="caffe",
    title="Caffe's bvlc_alexnet",
    provenance="""
        BVLC/caffe, models/bvlc_alexnet/train_val.prototxt and solver.prototxt: 227 pixels, LRN with
        Caffe's default k 1, fully connected layers from 0.005, biases of 0.1 where the paper has 1
        ("initialization to 1 gave flat loss", its readme.md), bias lr_mult 2 and decay_mult 0;
        450,000 iterations of 256 images are 90 epochs, and the rate falls every 100,000, or 20
        epochs. The weights that Caffe offers expect the colours in the order BGR.
    """,
    input_size=227,
    features=(
        Conv(96, 11, stride=4, init=Gaussian(0.01)),
        ReLU(),
        LRN(alpha=1e-4, k=1),
        Pool(),
        Conv(256, 5, padding=2, groups=2, init=Gaussian(0.01, bias=0.1)),
        ReLU(),
        LRN(alpha=1e-4, k=1),
        Pool(),
        Conv(384, 3, padding=1, init=Gaussian(0.01)),
        ReLU(),
        Conv(384, 3, padding=1, groups=2, init=Gaussian(0.01, bias=0.1)),
        ReLU(),
        Conv(256, 3, padding=1, groups=2, init=Gaussian(0.01, bias=0.1)),
        ReLU(),
        Pool(),
    ),
    classifier=(
        Linear(4096, Gaussian(0.005, bias=0.1)),
        ReLU(),
        Dropout(),
        Linear(4096, Gaussian(0.005, bias=0.1)),
        ReLU(),
        Dropout(),
        Linear(CLASSES, Gaussian(0.01)),
    ),
    pixels=RAW_PIXELS,
    recipe=Recipe(
        lr=0.01,
        momentum=0.9,
        weight_decay=5e-4,
        batch_size=256,
        epochs=90,
        update="paper",  # solvers/sgd_solver.cpp keeps the rate inside the velocity, too
        bias_lr_factor=2,
        bias_decay_factor=0,
        schedule="step",
        schedule_options={"epochs": 20, "gamma": 0.1},
    ),
)

CAFFENET = Variant(
    name="caffenet",
    title="Caffe's CaffeNet, which pools before it normalises",
    provenance="""
        BVLC/caffe, models/bvlc_reference_caffenet/train_val.prototxt and solver.prototxt: as
        bvlc_alexnet, but in layers 1 and 2 "pooling is done before normalization" (its readme.md),
        and biases of 1, as in the paper. The weights that Caffe offers, those of iteration 310,000,
        expect the colours in the order BGR.
    """,
    input_size=227,
    features=(
        Conv(96, 11, stride=4, init=Gaussian(0.01)),
        ReLU(),
        Pool(),
        LRN(alpha=1e-4, k=1),
        Conv(256, 5, padding=2, groups=2, init=Gaussian(0.01, bias=1)),
        ReLU(),
        Pool(),
        LRN(alpha=1e-4, k=1),
        Conv(384, 3, padding=1, init=Gaussian(0.01)),
        ReLU(),
        Conv(384, 3, padding=1, groups=2, init=Gaussian(0.01, bias=1)),
        ReLU(),
        Conv(256, 3, padding=1, groups=2, init=Gaussian(0.01, bias=1)),
        ReLU(),
        Pool(),
    ),
    classifier=(
        Linear(4096, Gaussian(0.005, bias=1)),
        ReLU(),
        Dropout(),
        Linear(4096, Gaussian(0.005, bias=1)),
        ReLU(),
        Dropout(),
        Linear(CLASSES, Gaussian(0.01)),
    ),
    pixels=RAW_PIXELS,
    recipe=CAFFE.recipe,
)

CAFFE_ONNX = replace(
    CAFFE,
    name="caffe_onnx",
    title="bvlc_alexnet as the ONNX zoo converted it",
    provenance="""
        onnx/models, bvlcalexnet: the weights of bvlc_alexnet with 224 pixels, so that the maps are
        54, 26 and 12 wide where Caffe's are 55, 27 and 13. The last pool reads one row and column
        beyond the edge (pads 0, 0, 1, 1) for an output of 6x6; what it reads counts as -inf there
        and as 0 here, which after ReLU is the same. Initial weights and recipe: bvlc_alexnet's.
    """,
    input_size=224,
    features=(*CAFFE.features[:-1], Pad(1), Pool()),
)

ONE_TOWER = Variant(
    name="one_tower",
    title="the paper's network on one GPU",
    provenance="""
        The paper's layers at their full width without the division into two towers, as many
        re-implementations build it (for example chainer/chainer, examples/imagenet/alex.py).
        Everything else is the paper's. It is not the one-GPU net of the paper's section 3.2, which
        has half the kernels.
    """,
    input_size=224,
    features=(
        Conv(96, 11, stride=4, padding=2, init=Gaussian(0.01)),
        ReLU(),
        LRN(alpha=5e-4, k=2),
        Pool(),
        Conv(256, 5, padding=2, init=Gaussian(0.01, bias=1)),
        ReLU(),
        LRN(alpha=5e-4, k=2),
        Pool(),
        Conv(384, 3, padding=1, init=Gaussian(0.01)),
        ReLU(),
        Conv(384, 3, padding=1, init=Gaussian(0.01, bias=1)),
        ReLU(),
        Conv(256, 3, padding=1, init=Gaussian(0.01, bias=1)),
        ReLU(),
        Pool(),
    ),
    classifier=PAPER.classifier,
    pixels=RAW_PIXELS,
    recipe=PAPER.recipe,
)

TORCHVISION = Variant(
    name="torchvision",
    title="torchvision's alexnet",
    provenance="""
        pytorch/vision, torchvision/models/alexnet.py, after "One weird trick for parallelizing
        convolutional neural networks" (Krizhevsky, 2014): one tower of 64-192-384-256-256 filters,
        no LRN, dropout in front of fc6 and fc7, mean-pooling to 6x6 so that any image of 63 pixels
        or more fits. Initial weights are torch's defaults. Recipe: references/classification, with
        --lr 1e-2: 8 processes of 32 images, divided by 10 every 30 of 90 epochs.
    """,
    input_size=224,
    features=(
        Conv(64, 11, stride=4, padding=2),
        ReLU(),
        Pool(),
        Conv(192, 5, padding=2),
        ReLU(),
        Pool(),
        Conv(384, 3, padding=1),
        ReLU(),
        Conv(256, 3, padding=1),
        ReLU(),
        Conv(256, 3, padding=1),
        ReLU(),
        Pool(),
        AdaptivePool(6),
    ),
    classifier=(
        Dropout(),
        Linear(4096),
        ReLU(),
        Dropout(),
        Linear(4096),
        ReLU(),
        Linear(CLASSES),
    ),
    pixels=IMAGENET_PIXELS,
    recipe=Recipe(
        lr=0.01,
        momentum=0.9,
        weight_decay=1e-4,
        batch_size=256,
        epochs=90,
        schedule="step",
        schedule_options={"epochs": 30, "gamma": 0.1},
    ),
)

D2L = Variant(
    name="d2l",
    title="the one of Dive into Deep Learning",
    provenance="""
        Zhang, Lipton, Li, Smola: Dive into Deep Learning, chapter_convolutional-modern/alexnet.md
        (d2l-ai/d2l-en): grey Fashion-MNIST images enlarged to 224 and scaled to 0..1, conv1 with
        padding 1 and so 54x54 outputs, one tower, no LRN, Xavier weights, plain SGD for 10 epochs.
    """,
    input_size=224,
    in_channels=1,
    features=(
        Conv(96, 11, stride=4, padding=1, init=Xavier()),
        ReLU(),
        Pool(),
        Conv(256, 5, padding=2, init=Xavier()),
        ReLU(),
        Pool(),
        Conv(384, 3, padding=1, init=Xavier()),
        ReLU(),
        Conv(384, 3, padding=1, init=Xavier()),
        ReLU(),
        Conv(256, 3, padding=1, init=Xavier()),
        ReLU(),
        Pool(),
    ),
    classifier=(
        Linear(4096, Xavier()),
        ReLU(),
        Dropout(),
        Linear(4096, Xavier()),
        ReLU(),
        Dropout(),
        Linear(CLASSES, Xavier()),
    ),
    pixels=PixelScale(mean=(0.0,), std=(255.0,)),
    recipe=Recipe(0.01, momentum=0, weight_decay=0, batch_size=128, epochs=10, schedule="constant"),
)

VARIANTS = {
    v.name: v for v in (PAPER, SOURCE2012, CAFFE, CAFFENET, CAFFE_ONNX, ONE_TOWER, TORCHVISION, D2L)
}
