"""`MambaEncoder` in the forms that speech toolkits call; each file is for one, and needs no other.

They convert lengths, masks and axes, and nothing else: the same weights give the same frames.
"""
