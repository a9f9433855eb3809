"""The controller: observe, plan, apply."""
