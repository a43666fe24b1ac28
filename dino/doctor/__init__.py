"""Says what a machine has and why a device cannot run on it: `python -m dino.doctor --device hpu`.

Texts become findings in `software`, `environment`, `hl_smi` and `cuda` (pure); `machine` asks the machine, and a run of
another process that crashes or hangs is a finding too; `examine` puts both together for each device.
"""
