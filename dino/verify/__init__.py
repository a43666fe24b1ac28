"""Turns a machine into evidence: `python -m dino.verify` says which modes compute the right numbers, and how fast.

`base` has the words of a step, `plan` which steps there are and how long each may take, `runner` and `server` their
processes, `steps` what each one does, `conclusion` what follows, `report`, `page` and `scrub` what is written.
"""
