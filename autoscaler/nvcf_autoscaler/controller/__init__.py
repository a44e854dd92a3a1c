"""Controller: reads the platform's records, decides, and acts while this replica leads."""
