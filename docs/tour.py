# %% [markdown]
# # A tour: one photograph through the whole engine, and back
#
# In half an hour you follow one photograph through AlexNet as the
# [paper](https://papers.nips.cc/paper/4824-imagenet-classification-with-deep-convolutional-neural-networks)
# describes it (Krizhevsky, Sutskever, Hinton, 2012), number by number, and one gradient all the way
# back. If you know PyTorch, you know every name here; what you will see is the inside. At the end
# you can say what the three gradients of a convolution are, why a dropout mask survives a crash,
# and which lines of NumPy, Numba and CUDA are the same line.
#
# No result below was typed by hand: the code above it printed it, and asserts what it should be.
# This page and [the notebook](tour.ipynb) are one text, [`tour.py`](tour.py), which the tests
# execute. To try things out: `.venv/bin/pip install -e ".[train]" jupyterlab`, and open
# `docs/tour.ipynb`. It takes half a minute, once another half for compiling, and 2 GB of memory.

# %%
import numpy as np
import tour_pictures  # beside this page: draws, and writes down calls

import tinyalex as ta
import tinyalex.functional as F
from tinyalex import nn
from tinyalex.backends import reference
from tinyalex.backends.geometry import ConvOptions, NormOptions, PoolOptions

ta.use_backend("reference")  # plain NumPy, to be read; the fast kernels come in section 12
ta.manual_seed(0)
model = ta.models.alexnet("paper").to(np.float64)  # so that all computers print the same digits
parameters = sum(p.size for p in model.parameters())
print(f"{parameters:,} parameters")

# %% [markdown]
# The network has learned nothing: its weights are the random ones with which the paper begins. So
# it will not know the cat. But arithmetic does not care, and neither do gradients.
#
# ## 1. Pixels
#
# Section 2 of the paper: images of 256 x 256 pixels, raw values from 0 to 255, minus the mean of
# the training images. We have no ImageNet here, so we subtract its mean colour. (The cat is
# Chelsea, by Stefan van der Walt, who gave the photograph to the public: CC0.)

# %%
from tinyalex.data import EvalTransform
from tinyalex.data.image import read_image
from tinyalex.models.recipe import IMAGENET_PIXELS

photo = read_image("images/tour-cat.png")
centre = EvalTransform(224, mean=IMAGENET_PIXELS.mean)(photo, np.random.default_rng())
x = ta.Tensor(centre.transpose(2, 0, 1)[None].astype(np.float64))
print("photograph", photo.shape, photo.dtype, "-> x", x.shape, x.dtype)
print("a pixel:", photo[116, 82], "-", IMAGENET_PIXELS.mean, "=", x.data[0, :, 100, 66].round(3))

# %% [markdown]
# 224 of 256 pixels: the centre, with 16 left over on each side. In training it is a random crop,
# mirrored or not: (256 - 224 + 1)² * 2 = {{33 * 33 * 2:,}} views of each image. (The paper, in
# section 4.1, counts 32 * 32 * 2 = {{32 * 32 * 2:,}}.)
# [`data/transforms.py`](../tinyalex/data/transforms.py): `TrainTransform`.
#
# ## 2. A convolution is one sum, many times
#
# conv1 has 96 filters of 11 x 11 pixels in 3 colours, and moves them in steps of 4. Take one
# filter, `k`, and one output, row `i` and column `j`. The window begins 2 pixels further up and
# left, since the image is padded by 2. Multiply the {{3 * 11 * 11}} pixels with the {{3 * 11 * 11}}
# weights, add up, add the bias: that is all.

# %%
conv1, relu1, norm1, pool1, conv2 = model.features[:5]
y = conv1(x)

k, i, j = 15, 27, 17
top, left = 4 * i - 2, 4 * j - 2
window = x.data[0, :, top : top + 11, left : left + 11]
taps = conv1.weight.data[k]
products = window * taps
for c, colour in enumerate(("red", "green", "blue")):
    first = " + ".join(f"{window[c, 0, s]:.3f} * {taps[c, 0, s]:.5f}" for s in range(2))
    print(f"{colour:>6}: {first} + 119 more products = {products[c].sum():9.4f}")
by_hand = products.sum() + conv1.bias.data[k]
print(f"   sum: {by_hand:9.4f}, and conv1 says {y.data[0, k, i, j]:.4f}")
assert np.isclose(by_hand, y.data[0, k, i, j])

# %% picture="tour-window" alt="Window, filter, products" tags=["hide-input"]
tour_pictures.window(x.data[0], (top, left), conv1.weight.data[k], y.data[0, k], (i, j))

# %% [markdown]
# There are 55 x 55 places and 96 filters, so {{y.size:,}} such sums. To compute them all at once,
# copy every window into a column of a matrix, and multiply: that is `im2col`
# ([`backends/reference.py`](../tinyalex/backends/reference.py): `im2col`, `conv2d`).

# %%
options = ConvOptions(stride=(4, 4), padding=((2, 2), (2, 2)))
columns = reference.im2col(x.data, (11, 11), options)
print("windows as columns:", columns.shape)
assert np.array_equal(columns[0, :, :, :, i, j], window)

matrix = columns.reshape(3 * 11 * 11, 55 * 55)
filters = conv1.weight.data.reshape(96, 3 * 11 * 11)
all_sums = filters @ matrix + conv1.bias.data[:, None]
assert np.allclose(all_sums.reshape(y.shape), y.data)
print(filters.shape, "@", matrix.shape, "=", all_sums.shape)
print(f"{x.size:,} numbers became {columns.size:,}: {columns.size / x.size:.1f} times as many")

# %% [markdown]
# That last line is the price of `im2col`, and the reason why the fast backends never write the
# whole matrix down (section 12).
#
# ## 3. The way of a call
#
# You wrote `conv1(x)`. These functions ran (but for those whose names begin with an underscore):

# %%
way = ("nn/conv.py", "functional.py", "autograd.py", "ops/conv.py", "backends/reference.py")
print(tour_pictures.calls(lambda: conv1(x), way))

# %% [markdown]
# Four floors, and each has one duty. [`functional.py`](../tinyalex/functional.py): `conv2d` has
# torch's arguments and turns them into a record of options.
# [`autograd.py`](../tinyalex/autograd.py): `Function` is a node of the graph: its `apply` runs
# forward and remembers where the inputs came from. [`ops/conv.py`](../tinyalex/ops/conv.py):
# `Conv2d` knows the mathematics, what must be saved for backward, and which gradients are not
# needed. The kernel knows only arrays. Which kernel, the array decides:
# [`backends/__init__.py`](../tinyalex/backends/__init__.py): `of`.
#
# ```text
#        forward                                       backward
#
#    functional.py  conv2d                          tensor.py    Tensor.backward
#           |  options as a record                        |  a gradient of 1
#    autograd.py    Function.apply  -- the node -->   autograd.py  backward
#           |  edges to the inputs                        |  newest node first
#    ops/conv.py    Conv2d.forward  -- saved ------>  ops/conv.py  Conv2d.backward
#           |  arrays                                     |  only what is needed
#    backends/__init__.py  of(x)                    backends/__init__.py  of(grad)
#           |                                             |
#     +-----+-----------+-------------+             conv2d_input_grad, conv2d_weight_grad,
#  reference           cpu           cuda           conv2d_bias_grad, of the same backend
#  NumPy, to read   Numba, BLAS    kernels/*.cu
# ```
#
# ## 4. ReLU, and five neighbours
#
# ReLU (section 3.1) leaves positive numbers alone. Then each number is divided by something that
# grows with its neighbours: the same pixel in the two channels before and after (section 3.3),
#
# ```text
# b[k] = a[k] / (2 + 0.0001 * sum of a[m]² over m = k-2 .. k+2) ** 0.75
# ```

# %%
a = relu1(y)
b = norm1(a)
neighbours = a.data[0, k - 2 : k + 3, i, j]
print("before ReLU:", np.round(y.data[0, k - 2 : k + 3, i, j], 3))
print("after ReLU: ", np.round(neighbours, 3))
squares = (neighbours**2).sum()
by_hand = neighbours[2] / (2 + 1e-4 * squares) ** 0.75
print(f"{neighbours[2]:.4f} / (2 + 0.0001 * {squares:.3f}) ** 0.75 = {by_hand:.4f}")
print(f"norm1 says {b.data[0, k, i, j]:.4f}")
assert np.isclose(by_hand, b.data[0, k, i, j])
print(norm1)

# %% [markdown]
# Look at the last line: the layer says alpha = {{norm1.alpha}}, not 0.0001. Torch, Caffe and the
# 2012 source code divide alpha by the size of the window, the paper's formula does not. So the
# paper's network needs five times the number; [`functional.py`](../tinyalex/functional.py):
# `local_response_norm` has the table of the four conventions.
#
# ## 5. Nine numbers and a winner
#
# Pooling takes the largest of 3 x 3 numbers and moves by 2, so that windows overlap by one row and
# one column (section 3.4).

# %%
pooled = pool1(b)
p, q = i // 2, j // 2
nine = b.data[0, k, 2 * p : 2 * p + 3, 2 * q : 2 * q + 3]
_, taps = reference.max_pool2d(b.data, PoolOptions((3, 3), (2, 2)), (27, 27))
winner = int(taps[0, k, p, q])
print(np.round(nine, 4))
print(f"the largest is {nine.max():.4f}; pool1 says {pooled.data[0, k, p, q]:.4f}, tap {winner}")
assert nine.argmax() == winner

# %% picture="tour-pool" alt="Nine numbers and a winner" tags=["hide-input"]
tour_pictures.pooled(b.data[0, k], (2 * p, 2 * q), winner)

# %% [markdown]
# It is the number that we have followed from the beginning: it won. The number of the winning
# place, 0 to 8, is all that pooling saves for the way back: one byte per output. A number that wins
# in two windows will get the gradient of both.
#
# ## 6. Two towers
#
# The paper's network was too large for one GPU of 2012, so half of the channels lived on each.
# conv2 sees only the half of its own GPU (section 3.2): `groups=2`. Set the second half to zero,
# and see which outputs change.

# %%
print("conv2's weights:", conv2.weight.shape, "of", pooled.shape[1], "channels")
first_tower = pooled.data.copy()
first_tower[:, 48:] = 0
change = np.abs(conv2(ta.Tensor(first_tower)).data - conv2(pooled).data).max((0, 2, 3))
print(f"outputs   0..127 change by at most {change[:128].max():.3f}")
print(f"outputs 128..255 change by at least {change[128:].min():.3f}")

# %% [markdown]
# conv4 and conv5 are divided too; conv3 and the linear layers see everything. On several machines
# the two halves can live apart again: [cluster.md](cluster.md).
#
# ## 7. The rest of the way
#
# `forward` keeps what went in and came out of each layer. We shall need it on the way back, and so
# does autograd.

# %%
layers = [*model.features, nn.Flatten(), *model.classifier]
steps = []


def forward(x):
    steps.clear()
    ta.random.start_step(0)  # section 8
    for layer in layers:
        before, x = x, layer(x)
        steps.append((layer, before.data, x.data))
    return x


logits = forward(x)
for layer, _, after in steps:
    kind, shape, zeros = type(layer).__name__, " x ".join(map(str, after.shape[1:])), after == 0
    print(f"{kind:18} {shape:13} spread {after.std():8.4f}, zeros {zeros.mean():4.0%}")

# %% picture="tour-way" alt="One map of each layer" tags=["hide-input"]
names = {0: "conv1", 1: "relu1", 3: "pool1", 4: "conv2", 7: "pool2", 8: "conv3", 14: "pool5"}
shown = [(name, steps[n][2][0, k]) for n, name in names.items()]
vectors = {17: "fc6, after ReLU", 18: "after dropout", 21: "fc7, after dropout"}
shown += [(f"{name}: 64 x 64", steps[n][2].reshape(64, 64)) for n, name in vectors.items()]
shown += [("logits: 25 x 40", logits.data.reshape(25, 40))]
tour_pictures.way(photo, shown)

# %% [markdown]
# Two things to notice. After conv3, whose biases are {{steps[8][0].bias.data.max():.0f}}, ReLU
# makes {{(steps[9][2] == 0).mean():.0%}} of the numbers zero; after conv4, whose biases are
# {{steps[10][0].bias.data.min():.0f}}, {{(steps[11][2] == 0).mean():.0%}}. The paper says why in
# section 5: positive inputs for the ReLUs let learning begin sooner. And the spread shrinks from
# layer to layer, because all weights have the standard deviation 0.01, until the wide linear layers
# raise it. What if we had divided the pixels by 58, as is usual today? How much of the cat would
# arrive at pool5?

# %%
with ta.no_grad():
    blank = model.features(ta.Tensor(0 * x.data)).data
    for divisor in (1, 58):
        pool5 = model.features(ta.Tensor(x.data / divisor)).data
        cat = abs(pool5 - blank).mean()
        print(f"pixels / {divisor:<2}: values of {pool5.mean():.2f}, of which the cat is {cat:.5f}")

# %% [markdown]
# Pixels and initial weights belong together, and a variant keeps them together
# ([`models/variants.py`](../tinyalex/models/variants.py): `PAPER`).
#
# ## 8. A mask that survives a crash
#
# Dropout (section 4.2) sets each number to zero with probability one half and doubles the others.
# Two riddles. Backward needs the same mask again: is it saved? And a run that is killed in step 700
# and resumed shall end with the same bits as one that was not: does the checkpoint hold the state
# of a generator in the middle of a step?
#
# Neither. Number n of a mask is a hash of a key and n, and a key is a hash of three integers: the
# seed, the step, and how many keys this step has drawn before
# ([`random.py`](../tinyalex/random.py): `start_step`, `next_key`;
# [`backends/reference.py`](../tinyalex/backends/reference.py): `random_bits`, `dropout`).

# %%
ta.random.start_step(700)
key = ta.random.next_key()  # the key of fc6's dropout in step 700
bits = reference.random_bits(key, 16)
mask = bits >> 40 >= 2**23  # the upper 24 of 64 bits, as a number from 0 to 1, against 0.5
print(f"key {key:016x}; the first numbers {bits[0]:016x}, {bits[1]:016x}")
print("kept:", mask.astype(int))

ta.random.start_step(700)
dropped = F.dropout(ta.ones(1, 4096), 0.5)
print("ones:", dropped.data[0, :16].astype(int))
assert np.array_equal(dropped.data[0, :16], 2.0 * mask)

# %% [markdown]
# So forward keeps nothing for backward but the key
# ([`ops/activation.py`](../tinyalex/ops/activation.py): `Dropout`): the same function of the same
# key gives the same mask, and any thread can compute its part of it. Now the crash. A step begins
# with `start_step` (steps are counted from 0; what the trainer prints as its step 701 is this
# 700), which puts the count of draws back to 0, and a checkpoint is written between
# two steps. So it needs the seed and the number of the step
# ([`training/trainer.py`](../tinyalex/training/trainer.py): `Trainer._learn`;
# [`training/run.py`](../tinyalex/training/run.py): `Run.get_state`). Another process, which knows
# nothing of this one, draws the mask of step 700 again:

# %%
import subprocess
import sys

state = ta.random.get_state()
print("a checkpoint keeps", {name: state[name] for name in ("seed", "step", "draws")})
resumed = """
import tinyalex as ta, tinyalex.functional as F
ta.use_backend("reference")
ta.manual_seed(0)
ta.rand(1000)  # it may have drawn whatever it likes before
ta.random.start_step(700)
print(F.dropout(ta.ones(1, 4096), 0.5).data[0, :16].astype(int))
"""
answer = subprocess.run([sys.executable, "-c", resumed], capture_output=True, text=True, check=True)
print("ones:", answer.stdout.strip())
assert answer.stdout.strip() == str(dropped.data[0, :16].astype(int))

# %% [markdown]
# [`tests/training/test_kill.py`](../tests/training/test_kill.py) does it in earnest: it kills runs,
# resumes them, and compares all bits.
#
# ## 9. The loss, and ln(1000)
#
# Which of a thousand classes? The loss is minus the logarithm of the probability that the network
# gives the right one. It knows nothing, so the probability should be a thousandth and the loss
# ln(1000) = {{np.log(1000):.4f}}.

# %%
tabby = 281  # the number of "tabby cat" in ImageNet's list
loss = F.cross_entropy(logits, np.array([tabby]))

z = logits.data[0]
probabilities = np.exp(z) / np.exp(z).sum()
by_hand = -np.log(probabilities[tabby])
print(f"-ln({probabilities[tabby]:.3e}) = {by_hand:.4f}, and cross_entropy says {loss.item():.4f}")
assert np.isclose(by_hand, loss.item())
excess = np.log(np.exp(z).mean())
print(f"that is ln(1000) + ln(mean of exp(z)) - z[tabby] = {np.log(1000):.4f} ", end="")
print(f"+ {excess:.4f} - ({z[tabby]:.4f}) = {np.log(1000) + excess - z[tabby]:.4f}")

# %% [markdown]
# It is worse than not knowing: the logits differ by accident (their spread is {{z.std():.2f}}), so
# the network is confident of nonsense. The first thing that it learns is to be modest, and the loss
# falls to ln(1000). If it stays there, it has learned nothing else: the trainer says so and what to
# try ([`training/trainer.py`](../tinyalex/training/trainer.py): `Trainer._stuck_advice`).
#
# ## 10. Back again
#
# `loss.backward()` walks the graph from the newest node to the oldest
# ([`autograd.py`](../tinyalex/autograd.py): `backward`, a walk of 23 lines). A node is born after
# everything that it needs. So whatever uses the newest node was newer still, and has been visited:
# its gradient is complete. Each line is an op, and behind it are the kernels that it called (for
# the bias of a linear layer, the sum that a convolution's bias takes):

# %%
ops = [
    f"ops/{name}.py"
    for name in ("loss", "matmul", "activation", "conv", "pool", "normalization", "shape")
]
trace = tour_pictures.calls(
    loss.backward, ["tensor.py", "autograd.py", *ops, "backends/reference.py"]
)
lines = []
for name in (line.split()[0] for line in trace.splitlines()):
    if name.endswith(".backward"):
        lines.append(f"{name.partition('.')[0]:17}")
    elif name == "dropout" or (name.endswith("_grad") and "." not in name):
        lines[-1] += f" {name}"
print("\n".join(line.rstrip() for line in lines[1:]))  # before them Tensor.backward

# %% [markdown]
# The last lines say something: conv1 computes the gradient of its weights and of its bias, and no
# `conv2d_input_grad`. The gradient of the photograph is not needed, and so it costs nothing
# (`needs_input_grad`).
#
# Each kernel does one thing: given `g`, the gradient of its output, it returns the gradient of its
# input. Here is the whole backward pass of AlexNet without autograd, in one loop over what
# `forward` kept. Each gradient of a weight is compared with what autograd found.

# %%
# loss = ln(sum of exp(z)) - z[tabby], so the gradient is the probabilities, 1 less for tabby
g = probabilities[None].copy()
g[0, tabby] -= 1

ta.random.start_step(0)
keys = [ta.random.next_key(), ta.random.next_key()]  # those of fc6 and fc7
arrived = {}  # at the output of each layer
worst = 0.0

for layer, before, after in reversed(steps):
    arrived[layer] = g
    match layer:
        case nn.Linear():
            rows = 8  # of fc6's 4096: comparing all would take a gigabyte
            worst = max(worst, np.abs(g[:, :rows].T @ before - layer.weight.grad[:rows]).max())
            g = g @ layer.weight.data
        case nn.Dropout():
            g = reference.dropout(g, layer.p, keys.pop())
        case nn.ReLU():
            g = g * (after > 0)
        case nn.Flatten():
            g = g.reshape(before.shape)
        case nn.MaxPool2d():
            window_options = PoolOptions((3, 3), (2, 2))
            _, taps = reference.max_pool2d(before, window_options, after.shape[2:])
            g = reference.max_pool2d_input_grad(g, taps, before.shape, window_options)
        case nn.LocalResponseNorm(size=size, alpha=alpha, beta=beta, k=shift):
            norm_options = NormOptions(size, alpha, beta, shift)
            g = reference.local_response_norm_input_grad(g, before, norm_options)
        case nn.Conv2d(padding=(pad, _), groups=groups, weight=weight):
            conv_options = ConvOptions(layer.stride, ((pad, pad), (pad, pad)), (1, 1), groups)
            dweight = reference.conv2d_weight_grad(g, before, weight.shape, conv_options)
            worst = max(worst, np.abs(dweight - weight.grad).max())
            if layer is not conv1:
                g = reference.conv2d_input_grad(g, weight.data, before.shape, conv_options)

print("no gradient differs from autograd's by 1e-10:", worst < 1e-10)

# %% [markdown]
# The number that we followed on its way there, on its way back: it won its pooling window, so all
# of the gradient goes to it. Through the normalisation, one part comes straight, divided as it was,
# and one comes by way of the neighbours, each of which it helped to make smaller. ReLU let it pass.
# (The formula is derived in [`backends/reference.py`](../tinyalex/backends/reference.py):
# `_normalise_grad`.)

# %%
print(f"at pool1's output: {arrived[pool1][0, k, p, q]:.6e}")
print(f"at norm1's output: {arrived[norm1][0, k, i, j]:.6e}")

value, g_norm = a.data[0, :, i, j], arrived[norm1][0, :, i, j]
near = range(k - 2, k + 3)
scales = {c: 2 + 1e-4 * (value[c - 2 : c + 3] ** 2).sum() for c in near}
straight = g_norm[k] / scales[k] ** 0.75
pulls = sum(g_norm[c] * value[c] / scales[c] ** 1.75 for c in near)
by_hand = straight - 2 * 0.75 * 1e-4 * value[k] * pulls
print(f"at relu1's output: {by_hand:.6e}, the kernel says {arrived[relu1][0, k, i, j]:.6e}")
assert np.isclose(by_hand, arrived[relu1][0, k, i, j])
print(f"at conv1's output: {arrived[conv1][0, k, i, j]:.6e}")

# %% [markdown]
# ## 11. Convolution's three gradients, one number of each
#
# A convolution is a sum of products of a weight and a pixel, and the gradient of a product is the
# other factor times `g`. So all three gradients are the sums of section 2 again, over other
# indices:
#
# - a **bias** is in every output of its filter: the sum of `g` over all places;
# - a **weight** meets one pixel of every window: the sum over all places of `g` times that pixel;
# - a **pixel** meets every weight of every filter that sees it: the sum over filters and taps of
#   `g`, at the output that it was a part of, times that weight.
#
# First a bias and a weight of conv1, the weight at row `r` and column `s` of the red part of our
# filter:

# %%
g1 = arrived[conv1][0, k]  # 55 x 55, one number per window
bias_grad = g1.sum()
r, s = 5, 5
padded = np.pad(x.data[0, 0], 2)  # red
weight_grad = sum(g1[i, j] * padded[4 * i + r, 4 * j + s] for i in range(55) for j in range(55))
print(f"bias:   {bias_grad:.6e}, autograd: {conv1.bias.grad[k]:.6e}")
print(f"weight: {weight_grad:.6e}, autograd: {conv1.weight.grad[k, 0, r, s]:.6e}")
assert np.isclose(weight_grad, conv1.weight.grad[k, 0, r, s])

# %% picture="tour-back" alt="A gradient at conv1" tags=["hide-input"]
tour_pictures.back(x.data[0], g1, conv1.weight.data[k], conv1.weight.grad[k])

# %% [markdown]
# Look at the third picture. The filter is noise, its gradient is not: neighbouring pixels of a
# photograph are alike, so what is learned from them is smooth. That is how noise becomes edges and
# blobs of colour.
#
# Then one pixel of the input of conv5, in the first tower, whose 128 filters see it at 3 x 3
# places:

# %%
conv5, before = next((layer, before) for layer, before, _ in steps if layer is model.features[12])
g5 = arrived[conv5][0, :128]  # the filters of the first tower
c, row, column = 40, 6, 7
pixel_grad = sum(
    g5[f, row + 1 - r, column + 1 - s] * conv5.weight.data[f, c, r, s]
    for f in range(128)
    for r in range(3)
    for s in range(3)
)
image = ta.Tensor(before, requires_grad=True)
F.conv2d(image, conv5.weight.detach(), padding=1, groups=2).backward(arrived[conv5])
print(f"pixel:  {pixel_grad:.6e}, autograd: {image.grad[0, c, row, column]:.6e}")
assert np.isclose(pixel_grad, image.grad[0, c, row, column])

# %% [markdown]
# All at once they are matrix products again, a few lines each
# ([`backends/reference.py`](../tinyalex/backends/reference.py): `conv2d_input_grad`,
# `conv2d_weight_grad`, `conv2d_bias_grad`). Autograd and our hands might still share a mistake. The
# judge is the definition: change the weight a little, and see how the loss changes.
# It has to be the same mask both times, or the difference would be that of two networks: `forward`
# says `start_step(0)`.

# %%
weights, place = conv1.weight.data, (k, 0, 5, 5)
before, step = weights[place], 1e-6
losses = []
with ta.no_grad():
    for value in (before - step, before + step):
        weights[place] = value
        losses.append(F.cross_entropy(forward(x), np.array([tabby])).item())
weights[place] = before
slope = (losses[1] - losses[0]) / (2 * step)
print(f"slope:  {slope:.3e}, autograd: {conv1.weight.grad[place]:.6e}")
assert np.isclose(slope, conv1.weight.grad[place], rtol=1e-3)

# %% [markdown]
# `ta.gradcheck` does this for every element of every input, and `tinyalex gradcheck` for every op.
#
# ### One update of one weight
#
# The paper's section 5 gives each weight a velocity, which keeps nine tenths of itself and is
# pulled by the gradient and, gently, towards zero:
#
# ```text
# v = 0.9 v - 0.0005 * 0.01 * w - 0.01 * gradient
# w = w + v
# ```

# %%
learned = model.features.parameters()
optimizer = ta.optim.SGD(learned, lr=0.01, momentum=0.9, weight_decay=5e-4, update="paper")
w, v = weights[place], 0.0
for number in (1, 2):
    v = 0.9 * v - 0.0005 * 0.01 * w - 0.01 * conv1.weight.grad[place]
    w = w + v
    optimizer.step()
    print(f"update {number}: v = {v:.4e}, w = {w:.8f}, SGD: {conv1.weight.data[place]:.8f}")
    assert np.isclose(w, conv1.weight.data[place])

# %% [markdown]
# (Twice with the same gradient, to see the velocity remember.) Torch keeps the rate outside of the
# velocity; the two differ as soon as the rate changes ([`optim.py`](../tinyalex/optim.py): `SGD`).
#
# ## 12. conv2 three times
#
# conv2 is where the most time goes. Three programs compute it here:
#
# - **NumPy** ([`backends/reference.py`](../tinyalex/backends/reference.py): `conv2d`), to be read:
#   section 2's columns, then a matrix product per tower.
# - **Numba** ([`backends/cpu/conv/winograd.py`](../tinyalex/backends/cpu/conv/winograd.py):
#   `forward`), to be fast on a CPU: Winograd's way, which takes fewer products.
# - **CUDA** ([`conv_forward.cu`](../kernels/conv_forward.cu): `conv_forward_naive`, then
#   `conv_forward_tiled`), to be fast on a GPU.
#
# The same step in each of them, quoted from the files:

# %% tags=["hide-input"]
from pathlib import Path

from IPython.display import Markdown

from tinyalex.backends.cpu.conv.winograd_transforms import TILE

POINTS = (TILE + 5 - 1) ** 2  # for a tile of outputs, with 5 x 5 taps
NUMPY, NUMBA, CUDA = (
    Path("..", path).read_text(encoding="utf-8")
    for path in (
        "tinyalex/backends/reference.py",
        "tinyalex/backends/cpu/conv/winograd.py",
        "kernels/conv_forward.cu",
    )
)
ROWS = {
    "a window": (
        "columns[:, :, r, s] = padded[:, :, h, w]",
        "input_columns(x, mask, scales[0], canvas, padding, first, rows, half)",
        "const int h = i * p.stride_h + r * p.dilation_h - p.top;",
    ),
    "beyond the edge": (
        "padded = np.pad(x, ((0, 0), (0, 0), *padding))",
        "columns = canvas.tiles * TILE + n - TILE",
        "if (h < 0 || h >= p.H || w < 0 || w >= p.W) continue;",
    ),
    "the towers": (
        "filters = weight.reshape(groups, K // groups, Cg * R * S)",
        "for g in range(groups):",
        "first = k / (p.K / p.groups) * channels;",
    ),
    "the sum": (
        "y = product(filters, columns).reshape(N, K, Ho, Wo)",
        "multiply(source, weights, target, tiles, Kg, Cg, False)",
        "for (int c = 0; c < channels; ++c) sum += pixel[c] * tap[c];",
    ),
    "the bias": (
        "y + bias[:, None, None]",
        "output_columns(half_done, outputs, canvas, first, bias, rectify, scales[1], y, spoilt)",
        "y[index] = bias ? sum + bias[k] : sum;",
    ),
}
table = ["| | NumPy | Numba, Winograd | CUDA |", "|---|---|---|---|"]
for title, quotes in ROWS.items():
    for text, quote in zip((NUMPY, NUMBA, CUDA), quotes, strict=True):
        assert quote in text, quote
    cells = ["`" + quote.replace("|", "\\|") + "`" for quote in quotes]
    table.append(f"| {title} | {' | '.join(cells)} |")
Markdown("\n".join(table))

# %% [markdown]
# The formula is the same, the order is not. NumPy writes all windows down and multiplies once per
# tower. Numba takes tiles of {{TILE}} x {{TILE}} outputs, a few lines of them at a time, which stay
# in a core's cache, and multiplies at each of {{POINTS}} points. CUDA gives each output a thread of
# its own in the first version, which is the formula and nothing else; here is that thread for the
# output that we followed, in Python:


# %%
def thread(index, x, weight, bias, channels=48, size=27):  # conv_forward_naive, in float64
    k, j, i = index % 256, index // 256 % size, index // 256 // size
    first = k // 128 * channels
    total = 0.0
    for r in range(5):
        for s in range(5):
            h, w = i + r - 2, j + s - 2
            if 0 <= h < size and 0 <= w < size:
                total += x[0, first : first + channels, h, w] @ weight[k, :, r, s]
    return total + bias[k]


index = (p * 27 + q) * 256 + k
one = thread(index, pooled.data, conv2.weight.data, conv2.bias.data)
whole = conv2(pooled).data
single = [ta.Tensor(t.data.astype(np.float32)) for t in (pooled, conv2.weight, conv2.bias)]
with ta.use_backend("cpu"):
    fast = F.conv2d(*single, padding=2, groups=2).data
print(f"NumPy {whole[0, k, p, q]:.3f}, Numba {fast[0, k, p, q]:.3f}, a thread of CUDA {one:.3f}")
assert np.isclose(one, whole[0, k, p, q])
assert np.abs(fast - whole).max() < 1e-4

from tinyalex.backends.cpu.conv.winograd_transforms import TILE

tiles, points = (-(-27 // TILE)) ** 2, (TILE + 5 - 1) ** 2  # of 27 x 27 outputs, rounded up
print(f"products per output: {25 * 48} directly, {tiles * points * 48 / 27**2:.0f} by Winograd")

# %% [markdown]
# Numba's way of it has fewer multiplications, and so wins by more than compiling alone could.
# [winograd.md](winograd.md) derives it from the product of two polynomials.

# %% tags=["hide-input"]
import json
import statistics

results = json.loads(Path("../benchmarks/results/kernels-paper-32.json").read_text())
(measured,) = (
    row["seconds"] for row in results["rows"] if (row["layer"], row["work"]) == ("conv2", "forward")
)
names = {"NumPy": "reference", "Numba and BLAS": "im2col", "Numba, Winograd": "tinyalex"}
table = ["| conv2, forward, 32 images in float32 | milliseconds |", "|---|---:|"]
for title, name in names.items():
    table.append(f"| {title} | {1e3 * statistics.median(measured[name]):.1f} |")
table.append("| CUDA | not measured on hardware yet |")
machine = results["machine"]
where = f"{machine['date']}, {machine['processor']}, {machine['cores']} cores"
Markdown("\n".join(table) + f"\n\n{where}; `benchmarks/bench_kernels.py` measures again.")

# %% [markdown]
# The CUDA kernels are compiled, and executed on a CPU, thread by thread, at every change, but no
# GPU has run them yet: [gpu.md](gpu.md) says what is known. Layers that follow one another are also
# computed in one pass on the fast backend, which is why a breakpoint in `Conv2d.backward` is not
# reached there unless you say `ta.use_fusion(False)`.
#
# ## Can you say it now?
#
# <details><summary>What are the three gradients of a convolution?</summary>
#
# Sums over the same products as forward. Bias: `g` over all places. Weight: `g` times the pixel
# that it met, over all places and images. Pixel: `g` times the weight that it met, over all filters
# that see it and all taps. Section 11 has one number of each.
# </details>
#
# <details><summary>Why does a dropout mask survive a crash, without being saved?</summary>
#
# It is a function of a key and a position, and the key one of seed, step and draw. A checkpoint has
# seed and step; backward has the key. Section 8.
# </details>
#
# <details><summary>Why is there no topological sort in backward?</summary>
#
# Nodes are numbered as they are made, after their inputs. The newest one that has a gradient cannot
# get any more. Section 10.
# </details>
#
# <details><summary>The loss of a new network is not ln(1000). Is it broken?</summary>
#
# No: its logits differ by accident, which costs about half of their variance ({{z.std():.2f}}² / 2
# = {{z.var() / 2:.2f}} here), and this class was unlucky besides. Broken is what stays at ln(1000).
# Section 9.
# </details>
#
# <details><summary>Which factor must alpha have, and why?</summary>
#
# Five: the paper adds up five squares, the function averages them. Section 4.
# </details>
#
# ## Where to go from here
#
# - [code.md](code.md): where everything else is, and in which order to read it.
# - [exercises.md](exercises.md): ten exercises, in which you break this engine or make it better.
# - [why.md](why.md): where in a photograph the answer of a trained network comes from.
# - [paper.md](paper.md): each sentence of the paper, the line that does it, and the test that holds
#   it.
# - [winograd.md](winograd.md): the fast convolution; [`kernels/README.md`](../kernels/README.md):
#   the ladder of CUDA kernels.
# - [`graph.py`](../tinyalex/graph.py): `draw_graph` draws the graph of a loss, and how many bytes
#   each operation keeps for backward.
# - [`examples/minimal.py`](../examples/minimal.py): a training of a minute, to change as you like.
# - [`tests/support/oracles.py`](../tests/support/oracles.py): layers' ops, as in section 11.
