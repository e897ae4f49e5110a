"""The GPU twins of the kernels. Each file lists its kernels in SIGNATURES, for compiling ahead of time."""
