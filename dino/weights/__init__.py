"""Read, check, load, describe and convert weights. Each format is one file in `formats`."""
