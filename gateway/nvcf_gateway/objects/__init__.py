"""Assets and large results in the object store."""
