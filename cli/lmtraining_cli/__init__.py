"""`kubectl lmtrain`: what people want to know of a training, and the few things they do to it."""
