"""Makes the CRD and the field reference from the models of `lmtraining_api`."""
