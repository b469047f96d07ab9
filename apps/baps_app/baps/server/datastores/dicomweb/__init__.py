"""Datastore of a PACS: its images and their labels, over DICOMweb."""

from baps.server.datastores.dicomweb.datastore import PacsDatastore, open_pacs

__all__ = ["PacsDatastore", "open_pacs"]
