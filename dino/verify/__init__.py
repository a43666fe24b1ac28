"""Evidence from a machine: what its device computes, how exactly and how fast."""
