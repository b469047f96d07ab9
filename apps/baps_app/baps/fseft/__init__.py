"""Few-shot adaptation of volumetric models (FSEFT: Silva-Rodriguez et al., MedIA 2025, arXiv 2303.17051).

A foundation model that was trained on public CT labels is adapted to a site's organ from a few labelled volumes. Torch,
numpy and MONAI, never the server.
"""
