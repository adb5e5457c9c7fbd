"""The data room: labelled segments, readers that supply their frames, shards on disk, and loaders that decode them.

Import from the modules. Nothing is re-exported here, so that a shard worker does not import torch or DALI.
"""
