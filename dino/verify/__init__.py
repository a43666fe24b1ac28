"""Tests a device: `python -m dino.verify` reports which modes compute correctly, and how fast.

`base` defines the interface of a step, `plan` lists the steps and their time limits, `runner` and
`server` run their processes, and `steps` holds the steps themselves. `conclusion` draws the
conclusion; `report`, `page` and `scrub` write the result.
"""
