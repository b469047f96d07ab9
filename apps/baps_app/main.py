"""The MONAI Label app, as MONAI Label's loader finds it: ``--app apps/baps_app``."""

from baps.server.app import BapsApp

__all__ = ["BapsApp"]
