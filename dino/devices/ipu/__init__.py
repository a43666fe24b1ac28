"""Graphcore IPUs through PopTorch; nothing but `devices/__init__.py`, which opens the device, imports this folder."""
