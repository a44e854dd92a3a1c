"""Tasks: code that runs to completion, started by `task(main)`."""
