"""C++ kernels for training and decoding on a CPU, each beside its source in cpp/."""
