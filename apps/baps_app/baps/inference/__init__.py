"""From clicks to masks: one slice, a whole organ, and the slices that are likely next."""
