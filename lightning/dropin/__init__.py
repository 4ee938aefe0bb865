"""bittensor's dendrite, axon and synapse, by the same names, over QUIC and HTTP."""
