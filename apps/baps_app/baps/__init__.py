"""BAPS: black-box adaptation of promptable segmentation models."""
