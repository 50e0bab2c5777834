"""AlexNet trained from scratch on ten patterns, in one page.

    python examples/minimal.py      a minute and 1.3 GB of memory on two cores

The eight layers of the variant `torchvision`, one per line, half as wide (the linear ones: a
quarter) and for crops of 160 pixels. Dropout is weak, as so short a training does not overfit.
"""

import tinyalex as ta
import tinyalex.functional as F
from tinyalex import nn
from tinyalex.data import EvalTransform, Loader, Patterns, TrainTransform

EPOCHS, IMAGES, SEED = 5, 4000, 0

ta.manual_seed(SEED)
crops, centres = TrainTransform(160, mean=128, std=64), EvalTransform(160, mean=128, std=64)
train = Loader(Patterns("train", IMAGES), 32, crops, SEED, cache_bytes=10**9)
test = Loader(Patterns("test", IMAGES // 8), 32, centres, shuffle=False, cache_bytes=10**9)
model = nn.Sequential(
    nn.Sequential(nn.Conv2d(3, 32, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
    nn.Sequential(nn.Conv2d(32, 96, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
    nn.Sequential(nn.Conv2d(96, 192, 3, padding=1), nn.ReLU()),
    nn.Sequential(nn.Conv2d(192, 128, 3, padding=1), nn.ReLU()),
    nn.Sequential(nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten()),
    nn.Sequential(nn.Dropout(0.1), nn.Linear(128 * 4 * 4, 1024), nn.ReLU()),
    nn.Sequential(nn.Dropout(0.1), nn.Linear(1024, 1024), nn.ReLU()),
    nn.Linear(1024, 10),
)
nn.data_dependent_(model, ta.Tensor(next(train.epoch(0)).images))  # make initial weights suit them
optimizer = ta.optim.SGD(model.parameters(), lr=0.002, momentum=0.9, weight_decay=5e-4)
schedule = ta.schedule.Cosine(optimizer, EPOCHS * len(train), warmup_steps=len(train) // 4)

for epoch in range(EPOCHS):
    model.train()
    losses = []
    for step, batch in enumerate(train.epoch(epoch), start=epoch * len(train)):
        schedule.before_step(step)
        loss = F.cross_entropy(model(ta.Tensor(batch.images)), batch.labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    with ta.no_grad():
        hits = [model(ta.Tensor(b.images)).argmax(1) == b.labels for b in test.epoch(0)]
    accuracy = ta.cat(hits).data.mean()
    print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.2f}, test accuracy {accuracy:.1%}")
