"""Says what a machine has and why a device cannot run on it: `python -m dino.doctor --device hpu`.

Texts become findings in `software`, `modules`, `host`, `environment`, `hl_smi`, `failures` and `cuda` (pure); `machine`
asks the machine, and another process that crashes or hangs is a finding too; `examine` puts both together for each
device, `gaudi` for hpu. What was tried outweighs what versions say: the bridge is imported, and a small product is
computed on a free card, both in the mode of a run and in processes of their own. Needs no torch, which may be broken.
"""
