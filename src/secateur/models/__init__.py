"""What a model is made of: blocks, the linears in them, and the channel spaces that tie linears together."""
