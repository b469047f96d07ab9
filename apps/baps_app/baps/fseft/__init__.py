"""Few-shot adaptation of volumetric models (FSEFT: Silva-Rodriguez et al., MedIA 2025, arXiv 2303.17051).

A foundation model that was trained on public CT labels is adapted to an organ from a few labelled volumes of the site.
This package uses torch, numpy and MONAI, and never the server.
"""
