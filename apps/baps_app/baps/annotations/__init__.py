"""Labels on disk: their versions, who drew them, merging and export."""
