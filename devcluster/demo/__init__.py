"""The demo: a newcomer's first five minutes, run for real and checked as it goes."""
