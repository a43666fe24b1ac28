"""Intel Gaudi: its software, examined with the standard library only, and the card (`device`)."""
