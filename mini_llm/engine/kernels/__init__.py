"""C++ kernels for training and decoding on a CPU. Each Python module stands beside its source in cpp/."""
