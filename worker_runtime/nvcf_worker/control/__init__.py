"""The WorkerService: settings, registration, token renewal."""
