"""Reports what a machine has and why a device cannot run: `python -m dino.doctor --device hpu`.

`software`, `modules`, `host`, `environment`, `hl_smi`, `failures` and `cuda` are pure: they turn
text into findings. `machine` queries the machine; a child process that crashes or hangs is also a
finding. `examine` combines both for each device, and `gaudi` does so for hpu. A test outweighs
version numbers: the bridge is imported, and a small matrix product is computed on a free card. Both
run in child processes, in the mode of a real run. The package does not need torch, which may be
broken.
"""
