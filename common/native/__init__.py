"""Kernels in C++ for one CPU process, compiled on the machine that runs them. Each has a twin in torch's operations."""
