"""The network sample by sample: compiled loops on a CPU, one kernel on a GPU, PyTorch anywhere."""
