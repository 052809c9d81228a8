"""A small encoder of pictures."""

ARCHITECTURE = "ViT-S-32-alt"  # the smallest that open_clip has built in
