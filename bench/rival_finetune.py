"""Fine-tuning the same backbone and weights for `bench/frontier.py`: timm in a plain PyTorch loop, or fastai's
`fine_tune`.

    python bench/rival_finetune.py timm|fastai FOLDER --seconds 120 [--seed 0]

FOLDER holds train and test with class folders. Prints one JSON line: test accuracy, seconds, images trained
on. The plain loop trains all layers with AdamW in bfloat16 and channels last, its cosine schedule as long as
the time allows; fastai trains as many whole epochs as fit after its frozen one, and at least one, however
long that takes.
"""

import argparse
import json
import time

BEGUN = time.monotonic()

import timm  # noqa: E402
import torch  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812
from torch.utils.data import DataLoader  # noqa: E402
from torchvision import datasets, transforms  # noqa: E402

from tellapart.inference.bundled import read_weights  # noqa: E402

SIDE, BATCH, CAUTION = 224, 32, 1.1
MEAN = STD = (0.5, 0.5, 0.5)


def network(classes: int) -> torch.nn.Module:
    """timm's network with the weights that tellapart has, which lie in the same order."""
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    values = [torch.tensor(value) for value in read_weights("efficientnet_lite0").values()]
    names = list(net.state_dict())
    assert len(names) == len(values)
    net.load_state_dict(dict(zip(names, values, strict=True)))
    net.reset_classifier(classes)
    return net


def plain_loop(folder: str, seconds: float, seed: int) -> dict:
    torch.manual_seed(seed)
    normal = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    crop = transforms.RandomResizedCrop(SIDE, scale=(0.5, 1.0))
    train = datasets.ImageFolder(
        f"{folder}/train", transforms.Compose([crop, transforms.RandomHorizontalFlip(), *normal])
    )
    test = datasets.ImageFolder(f"{folder}/test", transforms.Compose([transforms.Resize((SIDE, SIDE)), *normal]))
    net = network(len(train.classes)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)
    loader = DataLoader(
        train, batch_size=BATCH, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True
    )
    steps, planned, step_seconds = 0, None, 0.0
    while planned is None or steps < planned:
        for images, labels in loader:
            start = time.monotonic()
            net.train()
            with torch.autocast("cpu", torch.bfloat16):
                logits = net(images.to(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
            step_seconds = max(step_seconds * 0.8, time.monotonic() - start) if steps > 2 else 0.0
            if steps == 5:
                testing = len(test) / BATCH * step_seconds / 2.5
                left = seconds - (time.monotonic() - BEGUN) - testing
                planned = steps + max(1, int(left / (CAUTION * step_seconds)))
            if planned:
                share = min(1.0, steps / planned)
                for group in optimizer.param_groups:
                    group["lr"] = 1e-3 * 0.5 * (1 + torch.cos(torch.tensor(share * torch.pi)).item())
            late = time.monotonic() - BEGUN > seconds - len(test) / BATCH * step_seconds / 2.5
            if planned and (steps >= planned or late):
                planned = steps
                break
    net.eval()
    right = 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for images, labels in DataLoader(test, batch_size=64, num_workers=2):
            right += (net(images.to(memory_format=torch.channels_last)).argmax(1) == labels).sum().item()
    return {"accuracy": right / len(test), "n": len(test), "images": steps * BATCH}


def fastai_fine_tune(folder: str, seconds: float, seed: int) -> dict:
    from fastai.vision.all import (
        ImageDataLoaders,
        Learner,
        Normalize,
        Resize,
        accuracy,
        aug_transforms,
        default_split,
        set_seed,
    )

    set_seed(seed)
    loaders = ImageDataLoaders.from_folder(
        folder, train="train", valid="test", item_tfms=Resize(SIDE), bs=BATCH, num_workers=2,
        batch_tfms=[*aug_transforms(), Normalize.from_stats(MEAN, STD)],
    )  # fmt: skip
    net = network(loaders.c)
    body = torch.nn.Sequential(*list(net.children())[:-2])
    head = torch.nn.Sequential(*list(net.children())[-2:])
    learner = Learner(loaders, torch.nn.Sequential(body, head), metrics=accuracy, splitter=default_split)
    start = time.monotonic()
    learner.freeze()
    learner.fit_one_cycle(1, 2e-3, pct_start=0.99)
    epoch = 2.5 * (time.monotonic() - start)  # unfrozen, a step goes all the way back
    epochs = max(1, int((seconds - (time.monotonic() - BEGUN)) / epoch))
    learner.unfreeze()
    learner.fit_one_cycle(epochs, slice(1e-3 / 100, 1e-3))
    return {"accuracy": float(learner.validate()[1]), "n": len(loaders.valid_ds), "epochs": epochs}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("tool", choices=["timm", "fastai"])
    parser.add_argument("folder")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    run = plain_loop if given.tool == "timm" else fastai_fine_tune
    found = run(given.folder, given.seconds, given.seed)
    print(json.dumps({**found, "seconds": time.monotonic() - BEGUN}))
