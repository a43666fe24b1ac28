"""Networks: backbones and the projection head."""
