"""Tensors on a GPU: memory layout, transfers, errors, and arithmetic."""

import importlib

import numpy as np
import pytest
from helpers import assert_close, normal

import tinyalex as ta
import tinyalex.functional as F
from tinyalex import nn, optim
from tinyalex.backends.devices import device_of, move


@pytest.fixture
def pair(rng, cuda):
    """Return the same leaf on the CPU and on the GPU."""

    def make(*shape, dtype=np.float64):
        values = normal(rng, shape, dtype)
        return ta.tensor(values, requires_grad=True), ta.tensor(
            values, device="cuda", requires_grad=True
        )

    return make


def test_moves_there_and_back(cuda, rng):
    values = normal(rng, (3, 4), np.float32)
    x = ta.tensor(values).to("cuda")
    assert x.device == "cuda:0"
    assert isinstance(x.data, cuda.ndarray)
    assert x.to("cuda:0") is x
    assert np.array_equal(x.cpu().numpy(), values)
    assert np.array_equal(ta.Tensor(values).cuda().cpu().data, values)
    assert 'device="cuda:0"' in repr(x)


def test_images_keep_their_layout(cuda, rng):
    pixels = normal(rng, (2, 5, 7, 3), np.float32)
    images = ta.Tensor(np.moveaxis(pixels, -1, 1)).to("cuda")
    assert images.data.transpose(0, 2, 3, 1).flags.c_contiguous
    assert np.array_equal(images.cpu().numpy(), np.moveaxis(pixels, -1, 1))


def test_the_gradient_moves_back(pair):
    x, _ = pair(5)
    (x.to("cuda") * 3.0).sum().backward()
    assert device_of(x.grad) == "cpu"
    assert np.array_equal(x.grad, np.full(5, 3.0))


def elementwise(x, y):
    z = (x * 2 - 1) / (y * y + 1.5) + (x - y) ** 2
    return (z.exp().log() + x.tanh() * y.sigmoid() - abs(x) + 20).sqrt().sum(1).mean()


def shapes(x, y):
    z = ta.cat([x, y.T.T], dim=0).reshape(2, -1).flatten()[3:]
    return (F.pad(z.unsqueeze(0), (1, 2)) * 2).squeeze(0).sum()


def reductions(x, y):
    values, indices = x.max(dim=1)
    chosen = values.sum() + (indices * values).mean() + y.min() + y.amax(0).sum()
    return chosen + (x @ y.T).mean() + F.log_softmax(x, 1)[0].sum()


def choices(x, y):
    return ta.where(x.data > y.data, x, y).sum() + F.softmax(x, 1)[:, 1].sum() + x.relu().mean()


def pooling(x, y):
    z = (x @ y.T).reshape(1, 1, 7, 7)
    return F.avg_pool2d(z, 3, 2, 1).sum() + F.adaptive_avg_pool2d(z, 3)[0, 0, 1].sum()


@pytest.mark.parametrize("function", [elementwise, shapes, reductions, choices, pooling])
def test_what_the_cpu_computes(pair, function):
    (x, there_x), (y, there_y) = pair(7, 5), pair(7, 5)
    wanted, got = function(x, y), function(there_x, there_y)
    wanted.backward()
    got.backward()
    assert got.device == "cuda:0"
    assert_close(got.item(), wanted.data)
    for here, there in ((x, there_x), (y, there_y)):
        assert device_of(there.grad) == "cuda:0"
        assert_close(ta.Tensor(there.grad).cpu().data, here.grad)


def test_gradients_are_nobody_elses(pair):
    _, x = pair(4)
    _, y = pair(4)
    (x + y).sum().backward()  # one broadcast number for all of both
    x.grad += 1
    assert ta.Tensor(y.grad).cpu().numpy().tolist() == [1, 1, 1, 1]


def test_each_element_of_a_gradient_has_a_place(pair):
    _, x = pair(4)
    x.mean().backward()  # a new number, broadcast
    x.grad[0] = 1
    assert ta.Tensor(x.grad).cpu().numpy().tolist() == [1, 0.25, 0.25, 0.25]


def test_comparisons_and_numbers(pair):
    _, x = pair(6)
    assert (x > -100).device == "cuda:0"
    assert float((x == x).sum()) == 6
    assert x.argmax().item() == x.cpu().argmax().item()
    assert bool(x[0] < 100)
    assert (x <= x.data[0]).data.dtype == bool


def test_gradcheck_on_the_device(pair):
    _, x = pair(2, 3)
    assert ta.gradcheck(lambda x: (x * x).tanh().sum(1), [x])
    with pytest.raises(ta.GradcheckError):
        ta.gradcheck(lambda x: (x * x.detach()).sum(), [x])


def test_gradcheck_leaves_its_inputs_as_they_were(pair):
    here, there = pair(2, 3)
    ta.gradcheck(lambda x: (x * x).sum(), [there])
    assert np.array_equal(there.cpu().data, here.data)


MIXTURES = {
    "add": lambda here, there: here + there,
    "matmul": lambda here, there: here @ there,
    "cat": lambda here, there: ta.cat([there, here]),
    "linear": F.linear,
    "cross_entropy": lambda here, there: F.cross_entropy(there, ta.tensor([0, 1])),
    "comparison": lambda here, there: here > there,
    "where": lambda here, there: ta.where([[True, False]], there, there),
    "index": lambda here, there: there[np.array([1, 0])],
    "an array": lambda here, there: there * here.data,
    "backward": lambda here, there: (there * 2.0).backward(here.data),
}


@pytest.mark.parametrize("mix", MIXTURES.values(), ids=MIXTURES.keys())
def test_two_devices_in_one_operation(pair, mix):
    here, there = pair(2, 2)
    with pytest.raises(ValueError, match=r"one device, got .*cpu.* move them first") as error:
        mix(here, there)
    assert "cuda:0" in str(error.value)


def test_a_device_tensor_is_no_numpy_array(pair):
    _, x = pair(3)
    with pytest.raises(TypeError, match=r"cuda:0; copy it to the host first: \.cpu\(\)"):
        x.detach().numpy()
    with pytest.raises(TypeError, match=r"\.cpu\(\)"):
        np.asarray(x.detach())


def test_unknown_devices(cuda):
    x = ta.zeros(2)
    for name in ("gpu", "cuda:-1", "cuda:x", "cpu:0"):
        with pytest.raises(
            ValueError, match=r'expected a device, "cpu", "cuda" or "cuda:<number>"'
        ):
            x.to(name)


def test_a_leaf_that_moves_too_early(cuda):
    layer = nn.Linear(2, 1)
    loss = layer(ta.ones(3, 2)).sum()
    layer.to("cuda")
    with pytest.raises(ValueError, match=r"on cuda:0 for this input, got one on cpu; move tensors"):
        loss.backward()


def test_a_gradient_on_another_device(cuda):
    weight = nn.Parameter(np.ones(3, np.float32))
    with pytest.raises(ValueError, match=r"grad must have .* float32, cpu; got .* cuda:0"):
        weight.grad = ta.ones(3).to("cuda").data


def test_numbers_that_no_kernel_takes(cuda):
    with pytest.raises(TypeError, match=r"float or double or bfloat16, got int64; convert"):
        F.relu(ta.tensor([-1, 2], device="cuda"))


def small_network():
    ta.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.LocalResponseNorm(3), nn.MaxPool2d(2), nn.Flatten(),
        nn.Dropout(0.5), nn.Linear(12, 2),
    )  # fmt: skip


def second_gpu(rng, device):
    """Return what a bit of everything leaves on a device."""
    model = small_network().eval().to(device)
    images = ta.tensor(normal(rng, (4, 2, 6, 6), np.float32), device=device, requires_grad=True)
    nn.data_dependent_(model, images)
    model.load_state_dict({name: 0.5 * array for name, array in model.state_dict().items()})
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad(set_to_none=False)
        weight = ta.tensor(images.detach()[0, 0, 0, :2].to(bool), dtype=np.float64, device=device)
        labels = ta.tensor([0, 1, 1, 0], device=device)
        F.cross_entropy(model(images), labels, weight).backward()
        optimizer.step()
    model.zero_grad(set_to_none=False)
    images.backward(ta.ones(images.shape).to(device))
    images.backward(images)
    assert {parameter.device for parameter in model.parameters()} == {images.device} == {device}
    return [*model.state_dict().values(), move(images.grad, "cpu")]


def test_a_gpu_that_is_not_the_current_one(standin):
    wanted, got = (second_gpu(np.random.default_rng(1), device) for device in ("cpu", "cuda:1"))
    for array, expected in zip(got, wanted, strict=True):
        assert_close(array, expected)
    x = ta.tensor(np.ones((2, 3)), device="cuda:1", requires_grad=True)
    assert ta.gradcheck(lambda x: (x * x).to("cuda:0").tanh().sum(1), [x])


def test_modules_move_whole(cuda, rng):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Conv2d(2, 4, 3))
    before = model.state_dict()
    model.to("cuda")
    assert {p.device for p in model.parameters()} == {"cuda:0"}
    after = model.state_dict()
    assert all(np.array_equal(after[name], before[name]) for name in before)
    assert all(isinstance(array, np.ndarray) for array in after.values())
    model.load_state_dict({name: array + 1 for name, array in before.items()})
    assert {p.device for p in model.parameters()} == {"cuda:0"}
    assert np.array_equal(model.cpu().state_dict()["0.bias"], before["0.bias"] + 1)


def test_modules_move_whole_or_not_at_all(standin):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(50, 50))
    memory = importlib.import_module("simt.memory")
    with memory.limited(1000), pytest.raises(ta.DeviceError, match="memory is full"):
        model.to("cuda")
    assert {parameter.device for parameter in model.parameters()} == {"cpu"}


def test_files_hold_arrays_of_the_host(cuda, rng, tmp_path):
    images = ta.tensor(normal(rng, (2, 3, 4, 5)), device="cuda")
    ta.save({"tensor": images, "array": images.data}, tmp_path / "saved")
    saved = ta.load(tmp_path / "saved")
    assert np.array_equal(saved["tensor"], images.cpu().data)
    assert np.array_equal(saved["array"], images.cpu().data)


def test_velocities_follow_their_parameters(cuda, rng):
    """Two steps, of which the second is on the GPU, are the two steps on the CPU."""

    def steps(devices):
        weight = nn.Parameter(np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4))
        owner = nn.Module()
        owner.weight = weight
        optimizer = optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.01)
        for device in devices:
            owner.to(device)
            optimizer.zero_grad()
            (weight * weight * weight).sum().backward()
            optimizer.step()
        state = optimizer.state_dict()
        assert isinstance(state["velocity"][0], np.ndarray)
        optimizer.load_state_dict(state)
        return owner.state_dict()["weight"], state["velocity"][0]

    for got, wanted in zip(steps(["cpu", "cuda"]), steps(["cpu", "cpu"]), strict=True):
        assert_close(got, wanted, 1e-6)


def test_initial_weights_are_the_same_everywhere(cuda):
    def weights(device):
        ta.manual_seed(4)
        weight = ta.tensor(np.zeros((3, 4), np.float32), device=device)
        values = [init(weight).cpu().data.copy() for init in (nn.init.normal_, nn.init.uniform_)]
        return [*values, nn.init.ones_(weight).cpu().data]

    assert all(map(np.array_equal, weights("cuda"), weights("cpu")))


def test_a_graph_there_is_drawn_with_what_it_keeps(cuda):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 5)
    )
    x = ta.ones(2, 3, 6, 6)
    drawing = ta.draw_graph((model.to("cuda")(x.to("cuda")) ** 2.0).mean(), model)
    operations = [node.lines for node in drawing.nodes if node.kind != "leaf"]
    assert [lines[0] for lines in operations][-1] == f"{len(operations)} Mean on cuda:0"
    kept = [line for lines in operations for line in lines[2:]]
    assert "keeps [2, 3, 6, 6] float32, 864 B" in kept
    assert "keeps [5, 16] float32 of 4.weight" in kept
    assert "MaxPool2d" in drawing.svg
