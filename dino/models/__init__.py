"""Networks: backbones, the projection head, and their weights."""
