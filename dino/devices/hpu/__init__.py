"""Intel Gaudi: what its software is and does, by the standard library alone, and the card itself (`device`)."""
