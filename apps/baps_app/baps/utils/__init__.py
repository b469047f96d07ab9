"""Small tools that know nothing of images: atomic writes, caches, locks, limits."""
