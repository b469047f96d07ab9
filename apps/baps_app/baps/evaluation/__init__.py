"""Evaluate masks: labelled cases, splits by patient, scores, and whether a candidate is better."""
