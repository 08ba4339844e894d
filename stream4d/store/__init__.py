"""The 4D store: a zarr v3 hierarchy that grows window by window and survives being killed."""
