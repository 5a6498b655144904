"""torchqx: quantization as a PyTorch compiler pass."""
