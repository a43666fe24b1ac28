"""The eight steps, one module each; `dino.verify.plan` defines their order."""
