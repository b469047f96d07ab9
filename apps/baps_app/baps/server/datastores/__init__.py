"""The images and labels that MONAI Label serves: a folder of studies, or a PACS."""
