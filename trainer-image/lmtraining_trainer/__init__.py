"""The trainer: a supervisor and a loop."""
