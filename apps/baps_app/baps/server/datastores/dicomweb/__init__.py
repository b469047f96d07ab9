"""Images of a PACS and their labels, over DICOMweb."""

from lib.pacs.datastore import PacsDatastore, open_pacs

__all__ = ["PacsDatastore", "open_pacs"]
