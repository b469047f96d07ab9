"""BAPS: black-box adaptation of promptable segmentation models.

The public API. Names are imported when you first use them, so that ``import baps`` stays light; ``__init__.pyi`` beside
this file says where each one lives.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
