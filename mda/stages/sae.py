"""The sparse autoencoder whose features are units, where the unit asks for one."""
