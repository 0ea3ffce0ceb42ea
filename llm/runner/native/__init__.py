"""A whole step in one call of C, on CPUs: weights packed as SIMD units read them, the kernel, the runner."""
