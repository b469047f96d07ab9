"""Datastores of MONAI Label: a folder of studies, or a PACS."""
