"""Modules that an installation without extras may lack."""

from ace_dist.utils.extras import EXTRAS

BLOCKED = (*EXTRAS, "triton", "webdataset", "wn", "ninja")
