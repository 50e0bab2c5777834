"""Layers that own their parameters, under torch.nn's names."""

from tinyalex.nn import init
from tinyalex.nn.activation import Dropout, ReLU
from tinyalex.nn.container import Sequential
from tinyalex.nn.conv import Conv2d
from tinyalex.nn.data_init import data_dependent_
from tinyalex.nn.linear import Linear
from tinyalex.nn.loss import CrossEntropyLoss
from tinyalex.nn.module import Module, Parameter
from tinyalex.nn.normalization import LocalResponseNorm, WithinChannelResponseNorm
from tinyalex.nn.pooling import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from tinyalex.nn.shape import Flatten, ZeroPad2d

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "Linear",
    "LocalResponseNorm",
    "MaxPool2d",
    "Module",
    "Parameter",
    "ReLU",
    "Sequential",
    "WithinChannelResponseNorm",
    "ZeroPad2d",
    "data_dependent_",
    "init",
]
