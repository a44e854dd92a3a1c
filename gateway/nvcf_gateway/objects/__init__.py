"""Input assets and large results in the object store."""
