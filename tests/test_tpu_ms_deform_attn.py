"""The TPU kernels of multi-scale deformable attention, interpreted on CPU, and compiled for TPU."""
