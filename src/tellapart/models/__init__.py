"""Networks: their layers, the PyTorch modules, and the ONNX graphs they become."""
