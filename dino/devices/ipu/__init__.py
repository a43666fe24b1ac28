"""Graphcore IPUs through PopTorch; only `devices/__init__.py` imports this folder."""
