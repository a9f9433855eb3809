"""Telling trackers of a run, in a process of its own beside the supervisor."""
