"""The eight steps, one module each; `dino.verify.plan` has their order."""
