"""What the metagraph is made of; `lightning.metagraph` is the door to it."""
