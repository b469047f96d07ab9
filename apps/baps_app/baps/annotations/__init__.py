"""Labels on disk: their versions, their authors, merging and export."""
